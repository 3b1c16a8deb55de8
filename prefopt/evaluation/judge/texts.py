"""How prompts and answers are shown to a judge: one text, with the answers called A and B."""

from prefopt.errors import UserError
from prefopt.evaluation.judge.base import answers_of
from prefopt.evaluation.types import Answer, PairQuestion, Prompt, Question


def check_turns(question: Question) -> None:
    """Refuse a question about a turn that prompt or answers lack.

    Raises:
        UserError: with the prompt and the turn.
    """
    prompt, turn = question.prompt, question.turn
    shortest = min(len(answer.turns) for answer in answers_of(question))
    if not 1 <= turn <= min(len(prompt.turns), shortest):
        raise UserError(
            f"prompt {prompt.prompt_id}: turn {turn} cannot be judged, the prompt has "
            f"{len(prompt.turns)} turns and an answer {shortest}. Choose other turns."
        )


def first_request(prompt: Prompt) -> str:
    """What the first answer replies to: the first turn, after the messages before it."""
    if not prompt.context:
        return prompt.turns[0]
    before = [f"{message['role'].capitalize()}: {message['content']}" for message in prompt.context]
    return "\n\n".join([*before, f"User: {prompt.turns[0]}"])


def state_of(question: Question) -> str:
    """Request, reference if there is one, and what is to be judged, as one text.

    Of a single turn each answer stands by itself, of several the whole conversation.
    """
    check_turns(question)
    prompt, turn = question.prompt, question.turn
    answers = answers_of(question)
    names = ("A", "B") if isinstance(question, PairQuestion) else ("",)
    parts: list[str] = []
    if turn == 1:
        parts += _block("Request", first_request(prompt))
    if prompt.reference is not None and len(prompt.reference) >= turn:
        for index, text in enumerate(prompt.reference[:turn], start=1):
            of_turn = f" {index}" if turn > 1 else ""
            parts += _block(f"Reference answer{of_turn}", text)
    for name, answer in zip(names, answers, strict=True):
        if turn == 1:
            parts += _block(f"Answer {name}".strip(), answer.turns[0])
        else:
            parts += _block(f"Conversation {name}".strip(), _conversation(prompt, answer, turn))
    return "\n\n".join(parts)


def _block(title: str, text: str) -> list[str]:
    return [f"[{title}]\n{text}\n[End of {title.lower()}]"]


def _conversation(prompt: Prompt, answer: Answer, turn: int) -> str:
    requests = [first_request(prompt), *prompt.turns[1:turn]]
    lines: list[str] = []
    for request, reply in zip(requests, answer.turns[:turn], strict=True):
        lines += [f"User: {request}", f"Assistant: {reply}"]
    return "\n\n".join(lines)
