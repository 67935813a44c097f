"""The command line, through `main` with the pipeline replaced, and as a process where that is the point."""

import errno
import gzip
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_kit.cli import main
from rlhf_kit.errors import ModelError

ROOT = Path(__file__).parents[1]
COMMANDS = (
    *("run", "sft", "reward", "ppo", "validate", "evaluate", "score", "sample", "export", "chat", "report", "doctor"),
)
RANKING = {
    "prompt": "Why?",
    "responses": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}, {"text": "c", "rank": 2}],
}


@pytest.fixture(autouse=True)
def untouched_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_lines(tmp_path / "rankings.jsonl", [RANKING])
    path = tmp_path / "recipe.yaml"
    path.write_text("model:\n  name_or_path: owner/name\ndata:\n  rankings: rankings.jsonl\nppo:\n  kl_coef: 0.1\n")
    return path


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def replace_pipeline(monkeypatch: pytest.MonkeyPatch, **functions: Callable[..., Any]) -> None:
    stand_in = SimpleNamespace(**{"run": None, "run_step": None, **functions})
    monkeypatch.setitem(sys.modules, "rlhf_kit.pipeline", stand_in)


# -------------------------------------------------------------------- help


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    script = (
        "import sys, time; from rlhf_kit.cli import main\n"
        "for words in {words}:\n"
        "    try: main(words)\n"
        "    except SystemExit as end: assert end.code == 0, end.code\n"
        "heavy = {{'torch', 'transformers', 'datasets', 'pydantic', 'rich', 'numpy'}} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy)); print('SECONDS', time.process_time())"
    ).format(words=[["--help"], *[[command, "--help"] for command in COMMANDS]])
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stdout
    first_page = done.stdout.split("usage:")[1]
    assert all(f"\n    {command} " in first_page for command in COMMANDS)
    seconds = float(done.stdout.rpartition("SECONDS")[2])
    assert seconds < 3, "processor time of all ten pages together; the clock would also count what else is running"


def test_python_m_is_the_same() -> None:
    done = subprocess.run([sys.executable, "-m", "rlhf_kit", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("rlhf-kit ")


def test_validate_imports_neither_torch_nor_transformers(recipe: Path) -> None:
    script = (
        "import sys; from rlhf_kit.cli import main; code = main(sys.argv[1:])\n"
        "assert not {'torch', 'transformers', 'trl', 'peft'} & set(sys.modules); sys.exit(code)"
    )
    command = [sys.executable, "-c", script, "validate", str(recipe)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["run"],
        ["chat", "runs/x", "--temperature", "-1"],
        ["chat", "runs/x", "--max-new-tokens", "0"],
        ["chat", "runs/x", "--top-p", "2"],
        ["doctor", "stray"],
        ["run", "recipe.yaml", "--stray", "ppo.kl_coef=1"],
    ],
)
def test_wrong_usage_ends_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "usage:" in capsys.readouterr().err


# -------------------------------------------------------------------- run and the stages


@pytest.mark.parametrize("between", [[], ["--debug"]])
def test_overrides_reach_the_recipe_before_and_after_an_option(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, between: list[str]
) -> None:
    seen = []
    replace_pipeline(monkeypatch, run=lambda found: seen.append(found) or Path("out"))
    assert main(["run", str(recipe), *between, "ppo.kl_coef=0.3", "sft.learning_rate=1e-5"]) == 0
    (found,) = seen
    assert (found.ppo.kl_coef, found.sft.learning_rate) == (0.3, 1e-5)


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_a_stage_alone(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    replace_pipeline(monkeypatch, run_step=lambda recipe, name: Path("out") / name)
    assert main([stage, str(recipe)]) == 0
    assert capsys.readouterr().out == f"{Path('out') / stage}\n"


def test_three_mistakes_are_three_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model:\n  name_or_path: x\nppo:\n  kl_coeff: 0.1\n  gamma: much\ndata:\n  rubric: gone.py:grade\n")
    assert main(["run", str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        [f"{path}:4", "ppo.kl_coeff"],
        [f"{path}:5", "ppo.gamma"],
        [f"{path}:7", "data.rubric"],
    ]
    assert "did you mean 'kl_coef'?" in lines[0]


def test_trainer_mappings_are_checked_by_the_pipeline(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_pipeline(monkeypatch, check=lambda recipe: [("ppo.trainer.foo", "unknown argument")])
    recipe.write_text(recipe.read_text() + "  trainer:\n    foo: 1\n")
    assert main(["validate", str(recipe)]) == 2
    assert f"{recipe}:8: ppo.trainer.foo: unknown argument\n" in capsys.readouterr().err


def test_a_recipe_is_found_by_its_bare_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rlhf_kit import validation

    checkout = tmp_path / "checkout"
    for folder in ("recipes/mine", "rlhf_kit"):
        (checkout / folder).mkdir(parents=True)
    (checkout / "recipes" / "mine.yaml").touch()
    monkeypatch.setattr(validation, "__file__", str(checkout / "rlhf_kit" / "validation.py"))
    assert validation.find_recipe("mine") == checkout / "recipes" / "mine.yaml"
    monkeypatch.chdir(checkout / "recipes")  # where a folder has that name
    assert validation.find_recipe("mine") == checkout / "recipes" / "mine.yaml"
    (checkout / "rlhf_kit" / "_recipes").mkdir()
    (checkout / "rlhf_kit" / "_recipes" / "mine.yaml").touch()
    assert validation.find_recipe("mine").parent.name == "_recipes", "an installed wheel carries its own"
    assert main(["run", "yours"]) == 2
    assert capsys.readouterr().err == "yours: no such file, and no packaged recipe; there are: mine\n"


# -------------------------------------------------------------------- errors


def over(cause: BaseException) -> BaseException:
    error = RuntimeError("could not save")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ModelError("owner/name: cannot be loaded"), 2, "owner/name: cannot be loaded"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on from what is finished"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x"),
            2,
            "disk full (runs/x): nothing finished was lost",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 2, "disk full: nothing finished was lost"),
        (over(OSError(errno.ENOSPC, "No space left on device")), 2, "disk full: nothing finished was lost"),
        (RuntimeError('IoError(Os { code: 28, kind: StorageFull, message: "..." })'), 2, "disk full: nothing"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 2, "runs: permission denied; "),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    line: str,
) -> None:
    def fail(recipe: object) -> None:
        raise error

    replace_pipeline(monkeypatch, run=fail)
    assert main(["run", str(recipe)]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(line) and said.err.count("\n") == 1
    if code == 2:
        with pytest.raises(type(error)):
            main(["--debug", "run", str(recipe)])


@pytest.mark.parametrize("error", [ValueError("a bug"), FileNotFoundError(errno.ENOENT, "a bug", "x")])
def test_a_bug_keeps_its_traceback(recipe: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(recipe: object) -> None:
        raise error

    replace_pipeline(monkeypatch, run=fail)
    with pytest.raises(type(error), match="a bug"):
        main(["run", str(recipe)])


def test_a_real_full_device_is_recognised(tmp_path: Path) -> None:
    from rlhf_kit.process import line_for

    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OSError) as caught, Path("/dev/full").open("w") as stream:
        stream.write("x")
        stream.flush()
    assert (line_for(caught.value) or "").startswith("disk full")


@pytest.mark.parametrize("command", ["export", "chat", "report"])
def test_a_run_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, str(tmp_path / "gone")]) == 2
    assert capsys.readouterr().err == f"{tmp_path / 'gone'}: no such directory; name the output_dir of a run\n"


# -------------------------------------------------------------------- validate


def test_validate_counts_what_a_file_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tied = {"prompt": "Who?", "responses": [{"text": t, "rank": 1} for t in "abcd"]}
    rankings = write_lines(tmp_path / "rankings.jsonl", [RANKING, tied])
    prompts = tmp_path / "prompts.jsonl.gz"
    prompts.write_bytes(gzip.compress(b'{"prompt": "Why?"}\n'))
    assert main(["validate", str(rankings), str(prompts), str(rankings)]) == 0
    said = capsys.readouterr()
    verdicts = [line for line in said.out.splitlines() if not line.startswith(" ")]
    # RANKING has three pairs, one of them a tie; four answers of one rank make six ties
    assert verdicts == [f"{rankings}: 2 rankings, 2 pairs, 7 tied pairs; 1 warning", f"{prompts}: 1 prompt"]
    assert said.err.startswith(f"{rankings}:2: responses: ") and said.err.endswith("[warning: no-pair]\n")


def test_validate_shows_every_bad_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def responses(*ranks: object, text: str = "x") -> list[dict[str, object]]:
        named = [text + ("" if text == " " else str(i)) for i in range(len(ranks))]
        return [{"text": t} | ({} if r is None else {"rank": r}) for t, r in zip(named, ranks, strict=True)]

    rows = [
        {"prompt": "1", "responses": responses(1, 2), "id": "a"},
        '{"prompt": "2", "responses": [',
        {"prompt": "3", "responses": responses(1, None)},
        {"prompt": "4", "responses": responses(1)},
        {"prompt": "5", "responses": responses(1, 2, text=" ")},
        {"prompt": "6", "responses": responses(1, 2), "id": "a"},
    ]
    path = write_lines(tmp_path / "rankings.jsonl", rows)
    assert main(["validate", str(path)]) == 2
    said = capsys.readouterr()
    assert {line.split(": ")[0] for line in said.err.splitlines()} == {f"{path}:{n}" for n in (2, 3, 4, 5, 6)}
    assert said.out.startswith(f"{path}: 2 rankings, 2 pairs, 0 tied pairs; 6 errors\n")


def test_validate_checks_the_data_of_a_recipe_that_has_mistakes(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text(recipe.read_text() + "  clip_range: 1\n")
    write_lines(recipe.parent / "rankings.jsonl", [RANKING, {"prompt": "Why?"}])
    assert main(["validate", str(recipe)]) == 2
    said = capsys.readouterr()
    assert f"{recipe}:7: ppo.clip_range: " in said.err
    assert f"{recipe.parent / 'rankings.jsonl'}:2: responses: " in said.err
    assert said.out.splitlines()[0] == f"{recipe}: recipe, 1 data source; 1 error"


def test_validate_a_file_of_no_known_kind_and_a_missing_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = write_lines(tmp_path / "odd.jsonl", [{"colour": "red"}])
    gone = tmp_path / "gone.jsonl"
    assert main(["validate", str(odd), str(gone)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"{odd}:1: ") and "colour" in lines[0]
    assert lines[1] == f"{gone}: no such file [no-file]"
    assert main(["validate", "--schema", "text", str(odd)]) == 2
    assert f"{odd}:1: text: missing" in capsys.readouterr().err
