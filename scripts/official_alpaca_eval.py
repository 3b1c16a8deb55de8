"""Let the official alpaca-eval package read our files, and compare its numbers with ours.

The package gets a virtual environment of its own, since it does not import beside current
setuptools (alpaca-eval 0.6.6 wants pkg_resources). No judge outside is asked: a loopback server
plays one. Exits with 1 if a number differs by more than 1e-6.

    python scripts/official_alpaca_eval.py [--venv FOLDER] [--data FOLDER_OF_A_SYSTEM]
"""

import argparse
import hashlib
import json
import math
import os
import random
import subprocess
import sys
import threading
import venv
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

from prefopt.evaluation.files import write_json, write_whole
from prefopt.evaluation.formats.alpaca_eval import (
    read_annotations,
    read_model_outputs,
    write_annotations,
    write_model_outputs,
)
from prefopt.evaluation.protocols.alpaca_eval import AlpacaEvalRow, alpaca_eval_rows
from prefopt.evaluation.types import Answer, Judgment, Prompt, Reply

PACKAGES = ("alpaca-eval==0.6.6", "setuptools<82")
TOLERANCE = 1e-6
NUM_PROMPTS = 120
BASELINE, SYSTEM = "baseline", "system"
SHARED = ("win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total")
COLUMNS = (*SHARED, "discrete_win_rate")

# Run by the other Python: a list of [kind, arguments] comes in, a list of numbers goes out.
OFFICIAL = """
import json, logging, sys
from alpaca_eval import evaluate
from alpaca_eval.metrics import get_winrate

# Importing it sets the root logger to INFO.
logging.getLogger().setLevel(logging.ERROR)

def winrate(annotations):
    return get_winrate(json.load(open(annotations, encoding="utf-8")))

def whole(outputs, reference, judge, annotations):
    # caching_path: it would else write into the installed package.
    board, found = evaluate(
        model_outputs=outputs, reference_outputs=reference, annotators_config=judge,
        fn_metric="get_winrate", sort_by="win_rate", output_path=None,
        precomputed_leaderboard=None, is_return_instead_of_print=True, caching_path=None,
    )
    import pandas
    pandas.DataFrame(found).to_json(annotations, orient="records", indent=2)
    return board.iloc[0].to_dict()

calls = {"winrate": winrate, "whole": whole}
jobs = json.load(open(sys.argv[1], encoding="utf-8"))
results = [calls[kind](*arguments) for kind, arguments in jobs]
plain = [{k: float(v) for k, v in r.items() if not isinstance(v, str)} for r in results]
json.dump(plain, open(sys.argv[2], "w", encoding="utf-8"))
"""

JUDGE = """
loopback:
  prompt_template: "judge/prompt.txt"
  fn_completions: "openai_completions"
  completions_kwargs:
    model_name: "loopback"
    max_tokens: 1
    temperature: 1
    logprobs: true
    top_logprobs: 5
    requires_chatml: true
  fn_completion_parser: "logprob_parser"
  completion_parser_kwargs:
    numerator_token: "m"
    denominator_tokens: ["m", "M"]
    is_binarize: false
  completion_key: "completions_all"
  batch_size: 1
"""
TEMPLATE = (
    "<|im_start|>system\nm or M?\n<|im_end|>\n<|im_start|>user\n"
    "{instruction}\n1: {output_1}\n2: {output_2}\n<|im_end|>"
)


def main() -> None:
    """Compare, print a table, and exit with 1 on a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, help="kept; by default made anew each time")
    parser.add_argument(
        "--data", type=Path, help="holds a real system's model_outputs.json and annotations*.json"
    )
    arguments = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        python = environment(arguments.venv or folder / "venv")
        ours = written_and_read(folder, arguments.data)
        theirs = asked_officially(folder, python, list(ours))
        annotations = read_annotations(folder / "official.json")
        rows = alpaca_eval_rows(annotations.prompts, annotations.judgments, BASELINE)
        ours["whole"] = rows[0]
        is_same = compared(ours, dict(zip(theirs[0], theirs[1], strict=True)))
    sys.exit(0 if is_same else 1)


def environment(folder: Path) -> Path:
    """The Python of a virtual environment with the official package."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def written_and_read(folder: Path, data: Path | None) -> dict[str, AlpacaEvalRow]:
    """Our files for the official package, and our numbers of them by name."""
    prompts = [Prompt(turns=(f"What is {i}, “really”?",)) for i in range(NUM_PROMPTS)]
    answers = {
        system: [
            Answer(prompt_id=p.prompt_id, turns=(f"{system} says {i}/\n" * (i % 5 + 1),))
            for i, p in enumerate(prompts)
        ]
        for system in (BASELINE, SYSTEM)
    }
    for system, given in answers.items():
        write_model_outputs(folder / f"{system}.json", prompts, given, system)
    judgments = made_up_judgments(prompts)
    write_annotations(folder / "both orders.json", prompts, judgments, BASELINE, answers)
    rows = {"both orders": alpaca_eval_rows(prompts, judgments, BASELINE, answers)[0]}
    if data is not None:
        rows["real"] = real(folder, data)
    write_whole(folder / "judge" / "configs.yaml", JUDGE)
    write_whole(folder / "judge" / "prompt.txt", TEMPLATE)
    return rows


def made_up_judgments(prompts: list[Prompt]) -> list[Judgment]:
    """Both orders of each prompt, with ties and missing ones among them."""
    generator = random.Random(0)
    found = []
    for number, prompt in enumerate(prompts):
        for first, second in ((SYSTEM, BASELINE), (BASELINE, SYSTEM)):
            win = generator.random()
            probs = (0.0, 0.0, 1.0) if number % 10 == 0 else (win, 1 - win, 0.0)
            is_ok = number % 17 != 3
            found.append(
                Judgment(
                    key=f"{number}/{first}",
                    prompt_id=prompt.prompt_id,
                    turn=1,
                    sample=0,
                    kind="pair",
                    system=first,
                    opponent=second,
                    levels=(),
                    judge="made up",
                    reply=Reply(status="ok", probs=probs) if is_ok else Reply(status="refusal"),
                    asked_at="",
                )
            )
    return found


def real(folder: Path, data: Path) -> AlpacaEvalRow:
    """A real system's annotations, read, written again and summed up."""
    system, prompts, answers = read_model_outputs(data / "model_outputs.json")
    [file] = data.glob("annotations*.json")
    annotations = read_annotations(file)
    baseline = annotations.judgments[0].system
    write_annotations(folder / "real.json", prompts, annotations.judgments, baseline)
    return alpaca_eval_rows(prompts, annotations.judgments, baseline, {system: answers})[0]


def asked_officially(
    folder: Path, python: Path, names: list[str]
) -> tuple[list[str], list[dict[str, float]]]:
    """What the official package makes of our files."""
    jobs: list[tuple[str, list[str]]] = [("winrate", [str(folder / f"{n}.json")]) for n in names]
    files = [folder / f"{each}.json" for each in (SYSTEM, BASELINE)]
    jobs.append(("whole", [str(each) for each in (*files, folder / "judge")]))
    jobs[-1][1].append(str(folder / "official.json"))
    write_json(folder / "jobs.json", jobs)
    server = ThreadingHTTPServer(("127.0.0.1", 0), LoopbackJudge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    client = folder / "clients.yaml"
    client.write_text(f"default: [{{api_key: none, base_url: '{url}'}}]\n", encoding="utf-8")
    subprocess.run(
        [python, "-c", OFFICIAL, folder / "jobs.json", folder / "numbers.json"],
        check=True,
        cwd=folder,
        env={**os.environ, "OPENAI_CLIENT_CONFIG_PATH": str(client), "HF_HUB_OFFLINE": "1"},
    )
    server.shutdown()
    numbers = json.loads((folder / "numbers.json").read_text(encoding="utf-8"))
    return [*names, "whole"], numbers


class LoopbackJudge(BaseHTTPRequestHandler):
    """Prefers by a hash of what it reads, with probabilities as log-probs."""

    def do_POST(self) -> None:
        """Answer one chat completion."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        share = (hashlib.sha256(text.encode()).digest()[0] + 1) / 257
        tokens = [
            {"token": token, "logprob": math.log(prob), "bytes": None}
            for token, prob in (("m", share), ("M", 1 - share))
        ]
        message = {"role": "assistant", "content": "m"}
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": "length",
            "logprobs": {"content": [{**tokens[0], "top_logprobs": tokens}]},
        }
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "loopback"}
        data = json.dumps({**reply, "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def compared(ours: dict[str, AlpacaEvalRow], theirs: dict[str, dict[str, float]]) -> bool:
    """Print both, and say whether they agree."""
    is_same = True
    for name, row in ours.items():
        print(f"{name}: {row.title}")
        for column in COLUMNS:
            mine, official = getattr(row, column), theirs[name].get(column)
            differs = official is None or abs(mine - official) > TOLERANCE
            is_same = is_same and not differs
            print(f"  {column:18} ours {mine:<20} official {official}{'  !' if differs else ''}")
    print("the same" if is_same else "they differ")
    return is_same


if __name__ == "__main__":
    main()
