"""The kit's reward trainer beside TRL's on real labels: held-out accuracy at the same budget and at the same epochs.

    python benchmarks/bench_reward_quality.py all --data FOLDER --out DIR [--seeds 0,1,2] [--budget 1800]
    python benchmarks/bench_reward_quality.py train kit|trl --seed S --data FOLDER --out DIR
    python benchmarks/bench_reward_quality.py evaluate DIR... [--evaluate-at 240,1800,epochs]
    python benchmarks/bench_reward_quality.py compare DIR

FOLDER holds `hh_rlhf/*.jsonl.gz` (Anthropic's HH-RLHF: pairs of answers compared by people). They come through the
kit's own converter; 20 % of the prompts are held out, others for each seed, all pairs of a prompt on one side. The
quickstart's SmolLM2-135M with LoRA (r = 16, every linear layer of every block) is trained by both with the same token
ids in the same order, learning rate (constant after a short warm-up, so that every point of the curve is the same
training cut off), batch of 16 pairs, dtype, and malloc thresholds (the kit's command line raises them; here both have
them). Each trainer initialises its own head.

Each runs in a process of its own with one thread on one core. The budget is counted in CPU seconds of that process: on
a quiet core these are wall seconds, and other load on the machine does not count (but for what it takes of shared
caches and memory). Loading, saving and evaluation are not counted. Checkpoints are kept at fixed marks and at the end
of each epoch, and all are scored after the training, each by its own library's model class; what is made of the scores
is one code for both.

A run that is finished, and a checkpoint that is scored, is not done again; an interrupted run starts anew. The last
line is JSON; `kit_not_below` says whether the 95 % paired bootstrap interval over prompts of kit - TRL reaches zero at
the end of the budget and at every number of epochs that both did. The whole takes hours; without a command this is all
that is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from reward_quality.settings import TRAINERS, Settings, is_finished, start_anew  # noqa: E402

MARKS = (60, 120, 240, 480, 720, 960, 1200, 1500, 1800)
MODULES = {"kit": "reward_quality.kit", "trl": "reward_quality.peer"}
LORA = {
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


def prepared(options: argparse.Namespace, seed: int) -> dict[str, Settings]:
    """Token ids of a seed, written once, and the settings of both runs."""
    from reward_quality.prepare import base_of, model_section, prepare

    section = model_section(options.model)
    about = prepare(
        options.data,
        section,
        options.out / f"seed{seed}" / "data.json",
        seed=seed,
        heldout=options.heldout,
        max_prompt_length=options.max_length - options.max_length // 8,
        max_length=options.max_length,
        limit=options.limit,
    )
    print(f"seed {seed}: {json.dumps(about)}", flush=True)
    shared = {
        **base_of(section),
        "seed": seed,
        "attention": options.attention,
        "fingerprint": about["fingerprint"],
        "learning_rate": options.learning_rate,
        "warmup_steps": options.warmup_steps,
        "batch": options.batch,
        "lora": LORA,
        "max_length": options.max_length,
        "budget": options.budget,
        "marks": tuple(float(mark) for mark in MARKS if mark < options.budget),
        "least_epochs": options.least_epochs,
    }
    micro = {"kit": options.kit_micro_batch, "trl": options.trl_micro_batch}
    wasteful = {"kit": False, "trl": options.trl_gradient_checkpointing}
    return {n: Settings(trainer=n, micro_batch=micro[n], checkpointing=wasteful[n], **shared) for n in TRAINERS}


def command(options: argparse.Namespace, name: str, *words: str) -> list[str]:
    """How a trainer's process is started."""
    python = options.peer_python if name == "trl" else sys.executable
    return [python, "-m", MODULES[name], *words]


def together(jobs: dict[Path, list[str]], cores: list[int]) -> None:
    """Runs processes side by side, each on a core of its own, or one after another where there are not enough cores.

    What they say goes to `log.txt` of each run.

    Raises:
        SystemExit: one of them failed; the others are let go on to their end first.
    """
    waiting, failed = list(jobs.items()), []
    while waiting:
        batch, waiting = waiting[: len(cores)], waiting[len(cores) :]
        started = []
        for core, (run, words) in zip(cores, batch, strict=False):
            with (run / "log.txt").open("a") as log:
                started.append((run, subprocess.Popen(_on(core, words), env=_environment(), stdout=log, stderr=log)))
        try:
            failed += [run for run, process in started if process.wait() != 0]
        except BaseException:
            for _, process in started:
                process.terminate()
            raise
    if failed:
        tails = "\n".join(f"{run}: {(run / 'log.txt').read_text()[-2000:]}" for run in failed)
        raise SystemExit(f"failed:\n{tails}")


def _on(core: int, words: list[str]) -> list[str]:
    """The command on one core: the process is born there, so no thread of it was ever elsewhere."""
    code = f"import os, sys; os.sched_setaffinity(0, {{{core}}}); os.execv(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-c", code, *words]


def _environment() -> dict[str, str]:
    repository = HERE.parent
    fixed = {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": "1",
        # What the kit's command line sets for itself, for both: freed memory is kept for the next step.
        "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    }
    path = os.pathsep.join([str(HERE), str(repository), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **fixed, "PYTHONPATH": path}


def train(options: argparse.Namespace, seed: int, names: list[str], swap: bool = False) -> None:
    """Trains what is not finished."""
    jobs = {}
    for name, settings in prepared(options, seed).items():
        run = (options.out / f"seed{seed}" / name).resolve()
        if name not in names:
            continue
        if is_finished(run):
            if (there := Settings.read(run)) != settings:
                raise SystemExit(f"{run}: finished with other settings; choose another --out.\n{there}\n{settings}")
            print(f"{run}: finished before", flush=True)
            continue
        start_anew(run)
        settings.write(run)
        jobs[run] = command(options, name, "train", str(run))
    together(jobs, options.cores[::-1] if swap else options.cores)


def evaluate(options: argparse.Namespace, folders: list[Path]) -> None:
    """Scores the checkpoints of all finished runs under the folders."""
    found = {path.parent.resolve() for folder in folders for path in folder.rglob("done.json")}
    if not found:
        raise SystemExit(f"no finished run under {', '.join(map(str, folders))}")
    only = [name for name in options.evaluate_at.split(",") if name]
    runs = sorted(found, key=lambda run: (run.parent, run.name))
    together({run: command(options, run.name, "score", str(run), *only) for run in runs}, options.cores)


def compare(out: Path) -> None:
    """Writes and prints the results of a folder."""
    from reward_quality.figures import write_all

    last = write_all(out)
    print((out / "results.md").read_text())
    print(json.dumps(last))


def parsed() -> argparse.Namespace | None:
    """The command line; None where it names no command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = sorted(os.sched_getaffinity(0))[:2]
    processes = argparse.ArgumentParser(add_help=False)
    processes.add_argument("--peer-python", default=sys.executable, help="an interpreter that has TRL")
    processes.add_argument("--cores", type=lambda text: [int(c) for c in text.split(",")], default=cores)
    scoring = argparse.ArgumentParser(add_help=False)
    scoring.add_argument("--evaluate-at", default="", help="marks in seconds and 'epochs', by commas; default: all")
    training = argparse.ArgumentParser(add_help=False)
    training.add_argument("--data", type=Path, required=True)
    training.add_argument("--out", type=Path, required=True)
    training.add_argument("--model", help="a directory instead of the quickstart's model")
    training.add_argument("--budget", type=float, default=1800)
    training.add_argument("--least-epochs", type=int, default=1)
    training.add_argument("--learning-rate", type=float, default=2e-4)
    training.add_argument("--warmup-steps", type=int, default=5)
    training.add_argument("--batch", type=int, default=16, help="pairs of one step of the optimiser")
    training.add_argument("--kit-micro-batch", type=int, default=4)
    training.add_argument("--trl-micro-batch", type=int, default=2)
    training.add_argument("--trl-gradient-checkpointing", action=argparse.BooleanOptionalAction, default=False)
    training.add_argument("--attention", default="sdpa", choices=("sdpa", "eager"))
    training.add_argument("--max-length", type=int, default=512)
    training.add_argument("--heldout", type=float, default=0.2, help="share of the prompts that nothing is trained on")
    training.add_argument("--limit", type=int, help="use the first pairs only")
    commands = parser.add_subparsers(dest="command")
    one = commands.add_parser("train", parents=[training, processes])
    one.add_argument("trainer", choices=TRAINERS)
    one.add_argument("--seed", type=int, default=0)
    commands.add_parser("evaluate", parents=[scoring, processes]).add_argument("folders", nargs="+", type=Path)
    commands.add_parser("compare").add_argument("folder", type=Path)
    every = commands.add_parser("all", parents=[training, scoring, processes])
    every.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2])
    options = parser.parse_args()
    if options.command is None:
        parser.print_help()
        return None
    for name in ("kit_micro_batch", "trl_micro_batch") if "batch" in options else ():
        if options.batch % getattr(options, name):
            parser.error(f"--batch {options.batch} is no multiple of --{name.replace('_', '-')}")
    return options


def main() -> None:
    """Runs one command."""
    options = parsed()
    if options is None:
        return
    if options.command == "train":
        train(options, options.seed, [options.trainer])
    elif options.command == "evaluate":
        evaluate(options, options.folders)
    elif options.command == "compare":
        compare(options.folder)
    else:
        for number, seed in enumerate(options.seeds):
            train(options, seed, list(TRAINERS), swap=number % 2 == 1)
            evaluate(options, [options.out / f"seed{seed}"])
            compare(options.out)


if __name__ == "__main__":
    main()
