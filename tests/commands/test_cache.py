"""`prefopt precompute` fills the cache; `prefopt cache` lists, checks and prunes it."""

import os
import re
import shutil
import subprocess
import sys
import time

import pytest
import yaml
from filelock import FileLock

from prefopt.cli import main
from prefopt.data.cache_entries import cache_entries
from tests.support.launch import REPOSITORY
from tests.support.tiny import save_tiny_model, write_pairs


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("cache") / "model")


@pytest.fixture
def prefopt(tmp_path, model, capsys):
    """Runs a command; returns exit code, lines of output and the error line."""

    def run(*arguments, **sections):
        recipe = {
            "model": {"path": str(model)},
            "data": {
                "sources": [{"path": str(tmp_path / "pairs.jsonl")}],
                "cache_dir": str(tmp_path / "cache"),
            },
            "objective": {"name": "dpo"},
            "training": {"output_dir": str(tmp_path / "run"), "max_steps": 1},
        }
        for name, section in sections.items():
            recipe[name] = {**recipe.get(name, {}), **section}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        with pytest.raises(SystemExit) as exit_info:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return exit_info.value.code or 0, said.out.splitlines(), said.err.splitlines()

    write_pairs(tmp_path / "pairs.jsonl", 7)
    return run


@pytest.fixture
def filled(prefopt, tmp_path):
    """The same, with reference log-probs of 7 records in the cache."""
    code, *_ = prefopt("precompute", tmp_path / "recipe.yaml")
    assert code == 0
    return lambda *arguments: prefopt("cache", *arguments, "--cache-dir", tmp_path / "cache")


def entry_of(tmp_path, kind="reference"):
    (entry,) = (each for each in cache_entries(tmp_path / "cache") if each.kind == kind)
    return entry


def test_precompute_says_what_it_computed_and_where_it_is(prefopt, tmp_path):
    code, lines, _ = prefopt("precompute", tmp_path / "recipe.yaml")

    entry = entry_of(tmp_path)
    assert code == 0
    assert lines[-3] == "reference: computing log-probs of 7 records once"
    # 4 bytes for each token.
    number = entry.about.num_tokens
    assert re.fullmatch(
        rf"reference: 7 records with {number:,} response tokens in the cache, "
        rf"{4 * number} B, after 0:\d\d",
        lines[-2],
    )
    assert lines[-1] == f"reference: pairs.jsonl: {entry.folder}"
    assert not (tmp_path / "run").exists()
    code, lines, _ = prefopt("train", tmp_path / "recipe.yaml")
    assert code == 0
    assert "reference: 7 records from the cache" in lines


def test_precompute_a_second_time_computes_nothing(prefopt, tmp_path):
    prefopt("precompute", tmp_path / "recipe.yaml")

    code, lines, _ = prefopt("precompute", tmp_path / "recipe.yaml")

    assert code == 0
    assert not any("computing" in line for line in lines)


@pytest.mark.parametrize("adapter", ["new", "going on"])
def test_precompute_knows_where_an_adapter_starts(prefopt, tmp_path, adapter):
    lora = {"r": 4, "target_modules": ["q_proj"]}
    started = {"output_dir": str(tmp_path / "started"), "max_steps": 1, "learning_rate": 0.1}
    if adapter == "going on":
        prefopt("train", tmp_path / "recipe.yaml", adapter=lora, training=started)
        lora = {"path": str(tmp_path / "started")}
    sections = {"adapter": lora, "data": {"evaluation": {"num_groups": 2}}}
    code, lines, _ = prefopt("precompute", tmp_path / "recipe.yaml", **sections)
    assert code == 0
    assert "reference: computing log-probs of 7 records once" in lines

    code, lines, _ = prefopt("train", tmp_path / "recipe.yaml", **sections)

    assert code == 0
    assert "reference: 7 records from the cache" in lines
    entries = [each for each in cache_entries(tmp_path / "cache") if each.about is not None]
    # The first run's reference has no adapter.
    assert len(entries) == len({each.about.facts["adapter"] for each in entries})


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"objective": {"name": "simpo"}}, ["objective.name: simpo needs no reference", "train"]),
        ({"reference": {"cache": False}}, ["reference.cache: off", "auto"]),
        ({"model": {"dtype": "float64"}}, ["model.dtype", "float64"]),
    ],
)
def test_precompute_refuses_what_training_would_not_use(prefopt, tmp_path, sections, words):
    code, _, errors = prefopt("precompute", tmp_path / "recipe.yaml", **sections)

    assert code == 2
    (line,) = (line for line in errors if line.startswith("error: "))
    assert all(word in line for word in words), line


def test_list_shows_what_is_there(filled, tmp_path, model):
    code, lines, _ = filled("list")

    entry = entry_of(tmp_path)
    (row,) = (line for line in lines if "reference" in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    size = sum(path.stat().st_size for path in entry.folder.iterdir())
    assert code == 0
    assert cells[:6] == ["reference", entry.key[:12], "model", "pairs.jsonl", "7", "100%"]
    assert cells[6] == f"{size / 1000:.1f} kB"
    assert {line.split()[1] for line in lines if line.startswith("│")} == {
        "reference",
        "tokens",
        "records",
    }
    assert lines[-1].startswith("3 entries, ")


def test_list_says_how_much_is_there(filled, tmp_path):
    next(entry_of(tmp_path).folder.glob("piece-*")).unlink()

    _, lines, _ = filled("list")

    (row,) = (line for line in lines if "reference" in line)
    assert " 0% " in row


def test_verify_reads_everything(filled, tmp_path):
    assert filled("verify")[:2] == (0, ["3 entries, all whole"])
    piece = next(entry_of(tmp_path).folder.glob("piece-*"))
    content = bytearray(piece.read_bytes())
    content[60] ^= 1
    piece.write_bytes(content)

    code, lines, errors = filled("verify")

    assert code == 2
    assert lines == [f"{entry_of(tmp_path).key}: 1 damaged of 1 pieces"]
    assert errors[0].startswith(f"error: {tmp_path / 'cache'}: 1 of 3 entries are incomplete")


def test_prune_removes_what_is_not_whole(filled, tmp_path):
    entry = entry_of(tmp_path)
    os.truncate(next(entry.folder.glob("piece-*")), 50)
    left = tmp_path / "cache" / "tokens" / "0123.partial"
    left.mkdir()

    code, lines, _ = filled("prune")

    assert code == 0
    assert lines[0] == f"removed reference {entry.key}: 1 damaged of 1 pieces"
    assert lines[1] == "removed tokens 0123.partial: unfinished"
    assert lines[2].startswith("removed 2 of 4 entries, ")
    assert not entry.folder.exists()
    assert not left.exists()
    assert [each.kind for each in cache_entries(tmp_path / "cache")] == ["tokens", "records"]


def test_prune_leaves_what_is_whole(filled, tmp_path):
    code, lines, _ = filled("prune")

    assert (code, lines) == (0, ["removed 0 of 3 entries, 0 B"])


def test_prune_removes_what_is_named_by_the_start_of_its_key(filled, tmp_path):
    entry = entry_of(tmp_path)

    code, lines, _ = filled("prune", entry.key[:12])

    assert code == 0
    assert lines[0] == f"removed reference {entry.key}: as asked"
    assert len(lines) == 2
    assert not entry.folder.exists()


def test_prune_removes_what_is_old(filled, tmp_path):
    entry = entry_of(tmp_path)
    long_ago = time.time() - 3 * 86400
    for path in (entry.folder, *entry.folder.iterdir()):
        os.utime(path, (long_ago, long_ago))
    assert len(filled("prune", "--days", "4")[1]) == 1

    _, lines, _ = filled("prune", "--days", "2.5")

    assert lines[0] == f"removed reference {entry.key}: 3 d old"
    assert len(lines) == 2


def test_prune_removes_all(filled, tmp_path):
    code, lines, _ = filled("prune", "--all")

    assert code == 0
    assert lines[-1].startswith("removed 3 of 3 entries, ")
    assert cache_entries(tmp_path / "cache") == []


def test_prune_leaves_what_a_run_is_writing(filled, tmp_path):
    entry = entry_of(tmp_path)
    with FileLock(f"{entry.folder}.lock"):
        _, lines, _ = filled("prune", entry.key)

    assert lines[0] == f"left reference {entry.key}: a run is writing it"
    assert entry.folder.is_dir()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prune", "--all", "--days", "3"], ["keys, --days or --all"]),
        (["prune", "abc", "--all"], ["keys, --days or --all"]),
        (["prune", "nothing"], ["no entry 'nothing'", "Known: "]),
    ],
)
def test_prune_refuses_what_it_cannot_do(filled, tmp_path, arguments, words):
    code, _, errors = filled(*arguments)

    assert code == 2
    assert all(word in errors[0] for word in words)
    assert len(cache_entries(tmp_path / "cache")) == 3


_FULL_DISK = """
mount -t tmpfs -o size=8m tmpfs {disk} || exit 1
{python} -m prefopt validate {recipe} --show 0 > /dev/null 2>&1
dd if=/dev/zero of={disk}/filler bs=1k 2> /dev/null
truncate -s -100K {disk}/filler
{python} -m prefopt precompute {recipe}
echo "exit $?"
ls -A {disk}/cache/reference/*/
rm {disk}/filler
{python} -m prefopt precompute {recipe}
echo "exit $?"
{python} -m prefopt cache verify --cache-dir {disk}/cache
"""


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "-rm", "true"], check=False).returncode != 0,
    reason="a disk of its own needs unprivileged mounts",
)
def test_a_full_disk_keeps_what_is_whole_and_is_gone_on_from(prefopt, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    write_pairs(tmp_path / "pairs.jsonl", 3000)
    prefopt("objectives", data={"cache_dir": str(disk / "cache")})
    script = _FULL_DISK.format(disk=disk, python=sys.executable, recipe=tmp_path / "recipe.yaml")

    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stdout + done.stderr
    assert "no space left on the disk. Free some, or set data.cache_dir" in errors[0]
    assert "Traceback" not in done.stderr
    before, after = done.stdout.split("exit 2\n")
    assert "computing log-probs of 3,000 records once" in before
    kept = re.findall(r"piece-\d+\.bin$", after, re.MULTILINE)
    assert 1 <= len(kept) < 6
    assert ".partial" not in after
    known = 512 * len(kept)
    assert (
        f"{known:,} records from the cache, computing log-probs of {3000 - known:,} records"
        in after
    )
    assert after.endswith("exit 0\n3 entries, all whole\n")


@pytest.mark.parametrize("command", ["list", "verify", "prune"])
def test_a_folder_that_is_not_there_is_one_line(prefopt, tmp_path, monkeypatch, command):
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "nowhere"))

    code, _, errors = prefopt("cache", command)

    assert code == 2
    assert errors == [
        f"error: {tmp_path / 'nowhere'}: no such folder, so nothing is cached there. Give "
        "--cache-dir, the data.cache_dir of your recipes."
    ]
