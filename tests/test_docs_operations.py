"""docs/operations.md knows every log line of warning or above: whoever is woken by one finds it there."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from forwarder import pump
from forwarder.cost import Account, Budget, arithmetic

ROOT = Path(__file__).parent.parent
SEVERE: Final = {"warning", "error", "exception", "critical", "log"}

# Messages that do not stand where they are logged: the file, what stands there instead, and what it comes to.
COMPUTED: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("forwarder/poll.py", "cost.arithmetic(account, self._budget)"): (arithmetic(Account(0), Budget(300, 15, 5000)),),
    # The title of a change; docs/metrics.md has them all (tests/test_docs.py).
    ("forwarder/poll.py", "log.log"): (),
    ("forwarder/process.py", "message"): (
        "the configuration is not reloaded, because it is wrong; nothing has changed",
        "a file that the configuration refers to has changed and cannot be used; nothing has changed",
    ),
    ("forwarder/pump.py", "log.warning"): tuple(pump._SAYING.values()),
    ("forwarder/pump.py", "log.error"): tuple(pump._SAYING.values()),
}


def messages() -> Iterator[tuple[str, str]]:
    """Every message, with the file and line that logs it. What cannot be read here is a failure, not a gap."""
    for path in sorted((ROOT / "forwarder").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        yield from messages_of(name, path.read_text(encoding="utf-8"))


def messages_of(name: str, source: str) -> Iterator[tuple[str, str]]:
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(node): assignments(function) for function in functions for node in ast.walk(function)}
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Attribute) and ast.unparse(node.value) == "log" and node.attr in SEVERE):
            continue
        call = calls.get(id(node))
        given = node if call is None or node.attr == "log" else call.args[0]
        found = literal(given, inside.get(id(node), {})) or COMPUTED.get((name, ast.unparse(given)))
        assert found is not None, f"{name}:{node.lineno}: which message is this? Add it to COMPUTED"
        for message in found:
            yield f"{name}:{node.lineno}", message


def assignments(function: ast.AST) -> dict[str, ast.expr]:
    """What the names of a function are, where they are assigned in it."""
    return {
        target.id: node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def literal(node: ast.expr, assigned: dict[str, ast.expr]) -> list[str] | None:
    """The texts that an expression can come to, `…` where only the running program knows."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)]
        case ast.IfExp(body=body, orelse=orelse):
            texts = [literal(body, assigned), literal(orelse, assigned)]
            return None if None in texts else [text for each in texts for text in each or ()]
        case ast.Name(id=name) if name in assigned:
            return literal(assigned[name], {})
    return None


def documented() -> list[str]:
    """The beginnings of messages on the page: what stands in backticks in the first column of a table, up to `…`."""
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`.*?`(?:(?:, |; |,? and )`.*?`)*) \|", page, re.MULTILINE)
    return [text.partition("…")[0].strip() for cell in cells for text in re.findall(r"`(.*?)`(?!\w)", cell)]


def is_documented(message: str) -> bool:
    plain = message.replace("`", "")  # a table cannot hold backticks within backticks
    return any(len(known) >= 6 and plain.startswith(known) for known in documented())


@pytest.mark.parametrize(("where", "message"), [pytest.param(*found, id=found[0]) for found in messages()])
def test_every_warning_and_error_is_explained(where: str, message: str) -> None:
    """What it means and what to do stands in docs/operations.md."""
    assert is_documented(message), f"{where}: docs/operations.md does not explain: {message}"


def test_the_reader_sees_every_way_of_logging() -> None:
    """Literal, formatted, chosen, assigned before; what it cannot read it does not pass over."""
    source = """
log.warning("plain")
log.error(f"it is {what} now", extra=fields(a=1))
log.exception("this" if x else "that")
def report(x):
    text = f"later {x}"
    log.error(text)
log.info("not severe")
"""
    assert [message for _, message in messages_of("x.py", source)] == [
        "plain",
        "it is … now",
        "this",
        "that",
        "later …",
    ]
    for hidden in ("log.error(text())", "say = log.error", "def told(text): log.error(text)"):
        with pytest.raises(AssertionError, match=r"x\.py:1: which message is this"):
            list(messages_of("x.py", hidden))


def test_a_message_that_the_page_does_not_have_is_missed() -> None:
    """The comparison is not so loose that it finds everything."""
    assert not is_documented("the coffee is cold")
