"""The command line: run, report, sweep, play, check, bench, publish, restore, profiles.

Bad input is one line on stderr and exit code 2, a time limit 75, Ctrl-C 130, output that nobody
reads any more 141, a failed notebook, build or check 1. Modules that import torch are imported by
the command that needs them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import webbrowser
from importlib.util import find_spec
from pathlib import Path

from hd import config
from hd.config import GAMES, InputError
from hd.run.storage import ROOT, artifacts_root, exclusive, require_checkout, shown

EXIT_FAILED, EXIT_INPUT, EXIT_TIME_LIMIT, EXIT_INTERRUPTED, EXIT_PIPE = 1, 2, 75, 130, 141
EXAMPLES = {  # of each command, shown by its --help
    "run": ("run all --profile smoke", "run agent --game pong --profile audit",
            "run 07_ablation --profile audit -p ablation mask -p seeds 0,1,2"),
    "report": ("report --profile quick", "report --profile quick --no-run"),
    "sweep": ("sweep --profile audit --variants base,mask.strict --seeds 0,1,2 --dry-run",),
    "play": ("play --game pong --profile quick --policy tracker --steps 60",
             "play --game pong --profile paper --policy online",
             "play --game pong --profile paper --interactive"),
    "check": ("check --profile smoke --games pong",),
    "bench": ("bench --pairs 3 --quick",),
    "publish": ("publish --profile audit --variant all",
                "publish --profile paper --weights --games pong", "publish --benchmark"),
    "restore": ("restore --profile paper --games pong",
                "restore --profile paper --games ms_pacman"),
    "profiles": ("profiles",),
}


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is an InputError instead of a usage text and an exit."""

    def __init__(self, **settings):
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message):
        raise InputError(message)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    _print_anything()
    try:
        args = make_parser().parse_args(argv)
        if args.needs_checkout:
            require_checkout(f"hd {args.name}")
        code = args.command(args) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _forget_output()
        return _complain("what reads the output was closed, so this stopped; the same command "
                         "continues", EXIT_PIPE)
    except InputError as error:
        return _complain(error, EXIT_INPUT)
    except KeyboardInterrupt:
        return _complain("interrupted; the same command continues", EXIT_INTERRUPTED)
    except Exception as error:
        from hd.book.notebooks import NotebookError
        from hd.run.runs import TimeLimitReached
        if isinstance(error, TimeLimitReached):
            return _complain(error, EXIT_TIME_LIMIT)
        if isinstance(error, NotebookError):
            return _complain(error, EXIT_FAILED)
        raise


def make_parser() -> Parser:
    """The whole command line."""
    parser = Parser(prog="hd", description="a reproducible study of a world model of Atari games")
    commands = parser.add_subparsers(required=True, metavar="command")

    run = _add(commands, "run", run_notebook, "execute a notebook of book/pipeline, or all of them",
               needs_checkout=True)
    run.add_argument("notebook", help="as in book/pipeline, with or without its number, or all")
    _add_choices(run)
    run.add_argument("--game", help="one game alone, as --games with one name")
    _add_time_limit(run)
    run.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                     help="another parameter of the notebook")
    run.add_argument("--force", action="store_true", help="execute even if it is up to date")
    run.add_argument("--with-parent", action="store_true", help=argparse.SUPPRESS)

    report = _add(commands, "report", make_report, "run the whole chain and build the book",
                  needs_checkout=True)
    _add_choices(report)
    _add_time_limit(report)
    report.add_argument("--no-run", action="store_true", help="only build, from what is there")

    _add_sweep_options(_add(commands, "sweep", run_sweep, "the chain for variants and seeds",
                            needs_checkout=True))

    play = _add(commands, "play", play_game, "a video: the real game, its codes, the dream")
    play.add_argument("--game", help="the first of the games, or another of them")
    _add_choices(play)
    play.add_argument("--steps", type=_number, default=120, help="length after the context")
    play.add_argument("--policy", default="recorded",
                      help="recorded, random, tracker, agent or online")
    play.add_argument("--out", help="the mp4; by default among the run's figures")
    play.add_argument("--interactive", action="store_true",
                      help="a page to play in the dream of the online agent; --out is a folder")

    check = _add(commands, "check", run_checks, "validate data, model and mask; plays if needed",
                 needs_checkout=True)
    _add_choices(check, profile="smoke")
    bench = _add(commands, "bench", run_benchmark, "side-by-side timings", needs_checkout=True)
    bench.add_argument("--pairs", type=_number, default=5, help="timings of each side")
    bench.add_argument("--quick", action="store_true",
                       help="tiny sizes, to see that it runs; never published")
    _add_publish_options(_add(commands, "publish", publish_profile,
                              "copy fresh tables and figures for git", needs_checkout=True))
    restore = _add(commands, "restore", restore_weights, "published weights into the runs' folders",
                   needs_checkout=True)
    _add_choices(restore)
    _add(commands, "profiles", show_profiles, "what the profiles and variants are")
    return parser


# ---- commands

def run_notebook(args) -> None:
    """Execute one notebook, or the chain."""
    from hd.book import notebooks
    if args.with_parent:
        notebooks.end_with_parent()
    if args.game is not None:
        args.games = args.game
    settings = {**_choices(args), "time_limit": args.time_limit, "force": args.force}
    if args.notebook == "all":
        if args.p:
            raise InputError("-p needs one notebook, not all")
        notebooks.execute_all(**settings)
        return
    unnumbered = {name.partition("_")[2]: name for name in notebooks.names()}
    notebook = unnumbered.get(args.notebook, args.notebook)
    config.allowed("notebook", notebook, [*notebooks.names(), "all"])
    repeated = {name for name, _ in args.p if [pair[0] for pair in args.p].count(name) > 1}
    if repeated:
        raise InputError(f"parameter {', '.join(sorted(repeated))} is given twice")
    notebooks.execute(notebook, **settings, parameters=dict(args.p))


def make_report(args) -> None:
    """Run the chain, stage the book and build it."""
    from hd.book import building, notebooks
    chosen = _choices(args)
    if not args.no_run:
        notebooks.execute_all(**chosen, time_limit=args.time_limit)
    staged = building.stage_book(**chosen)
    print("building the book", flush=True)
    index = building.build_book(staged)
    print(f"the book is ready: {index}")


def run_sweep(args) -> int:
    """The Snakefile's DAG under a lock of our own, so that a killed sweep leaves nothing locked."""
    seeds = config.check_seeds(map(_number, args.seeds.split(",")))
    variants, games = args.variants.split(","), config.check_games(args.games)
    for variant in variants:
        config.resolve(args.profile, variant, games=games)
    from hd.run.machine import cpu_count
    config.allowed("notebook", args.until, config.CHAIN)
    cores = cpu_count() if args.cores == "all" else args.cores
    if not isinstance(cores, int) or cores < 1:
        raise InputError(f"cores must be a whole number from 1, or all; got {cores!r}")
    if not find_spec("snakemake"):
        raise InputError("sweeps need Snakemake, which needs Python 3.11 or newer")
    if args.slurm and not find_spec("snakemake_executor_plugin_slurm"):
        raise InputError("--slurm needs the package snakemake-executor-plugin-slurm")
    from snakemake.cli import main as snakemake
    command = ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(artifacts_root()),
               "--nolock", "--drop-metadata", "--keep-going", "--config",
               f"profile={args.profile}", f"until={args.until}",
               f"variants={_listed(variants)}", f"seeds={_listed(seeds)}",
               f"games={_listed(games)}"]
    command += ["--profile", str(ROOT / "workflow" / "slurm")] if args.slurm else \
        ["--cores", str(cores)]
    if args.dry_run:
        command.append("--dry-run")
    with exclusive(artifacts_root() / "sweep"):
        try:
            snakemake(command)
        except SystemExit as done:
            if done.code:
                return _complain("the sweep is not complete, see above; the same command "
                                 "continues it", EXIT_FAILED)
    return 0


def play_game(args) -> None:
    """Write a video of the real game, its codes decoded and the dream, side by side."""
    chosen = _choices(args)
    args.game = args.game or chosen["games"][0]
    config.allowed("game", args.game, chosen["games"])
    config.resolve(args.profile, args.variant, games=chosen["games"])
    config.check_seed(args.seed)
    if args.interactive:
        return play_dream(args)
    from hd.report.video import play_video
    path = play_video(game=args.game, **chosen, policy=args.policy, steps=args.steps, out=args.out)
    print(shown(path))


def play_dream(args) -> None:
    """Write the page on which the reader plays in the online agent's dream; open it if it lies in
    its own place and there is a screen."""
    require_checkout("hd play --interactive")
    if args.policy not in ("recorded", "online"):
        raise InputError(f"--interactive plays in the dream of the online agent; it has no policy "
                         f"{args.policy!r}")
    if args.out and Path(args.out).is_file():
        raise InputError(f"--interactive writes a folder; {args.out} is a file")
    from hd.book.dream_page import write_page
    from hd.run import runs
    run = runs.start("agent", profile=args.profile, variant=args.variant, seed=args.seed,
                     games=[args.game])
    page = write_page(run, Path(args.out or run.root / "figures" / run.name / "dream"))
    print(shown(page))
    has_screen = os.name == "nt" or sys.platform == "darwin" or any(
        map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    if has_screen and not args.out:
        webbrowser.open(page.as_uri())


def run_checks(args) -> int:
    """The validation suite: one line per check."""
    chosen, failed = _choices(args), 0
    config.resolve(chosen["profile"], chosen["variant"], games=chosen["games"])
    from hd import stages
    from hd.run import runs
    run = runs.start("frames", **chosen)
    stages.make(run)
    for what, holds, detail in stages.check(run):
        print(f"{'holds' if holds else 'FAILS'}  {what}: {detail}", flush=True)
        failed += not holds
    return EXIT_FAILED if failed else 0


def run_benchmark(args):
    """Side-by-side timings."""
    if not isinstance(args.pairs, int) or args.pairs < 1:
        raise InputError(f"pairs must be a whole number from 1; got {args.pairs!r}")
    from hd.bench.benchmark import main as benchmark
    return benchmark(pairs=args.pairs, quick=args.quick)


def publish_profile(args) -> None:
    """Copy a profile's fresh tables and figures, or the benchmark, into results/ and figures/."""
    if args.benchmark == bool(args.profile):
        raise InputError("publish needs either --profile or --benchmark")
    if args.weights + args.dream + args.video > 1:
        raise InputError("publish takes one of --weights, --dream and --video")
    if args.profile:
        config.resolve(args.profile, "base" if args.variant == "all" else args.variant)
    if args.seed is not None:
        config.check_seed(args.seed)
    if args.benchmark:
        from hd.book.publishing import publish_benchmark
        copied = publish_benchmark()
    elif args.dream or args.video:
        from hd.book import dream_page
        from hd.book.publishing import publish_videos
        from hd.run import runs
        copied = (publish_videos if args.video else dream_page.publish)([
            runs.start("agent", profile=args.profile, variant=args.variant, seed=args.seed or 0,
                       games=[game]) for game in config.check_games(args.games)])
    elif args.weights:
        from hd.run import runs, weights
        copied = weights.publish(runs.start("encoder", profile=args.profile, variant=args.variant,
                                            seed=args.seed or 0,
                                            games=config.check_games(args.games)))
    else:
        from hd.book.publishing import publish
        copied = publish(args.profile, args.variant, args.seed)
    print(f"{len(copied)} files published; look at them with git diff, then commit them")


def restore_weights(args) -> None:
    """Restore published weights, so that stages need not be trained to be looked at."""
    chosen = _choices(args)
    config.resolve(chosen["profile"], chosen["variant"], games=chosen["games"])
    from hd.run import runs, weights
    restored = weights.restore(runs.start("encoder", **chosen))
    print(f"restored: {', '.join(restored) or 'nothing, all stages are there'}")


def show_profiles(args) -> None:
    """Print the sizes of each profile and the fields in which each variant differs from base."""
    line = "{:9} {:>9} {:>9} {:>9} {:>9} {:>12} {:>8} {:>9}".format
    print(line("profile", "frames", "encoder", "tokenizer", "world", "world", "policy", "episodes"))
    print(line("", "per game", "steps", "steps", "steps", "layers, dim", "steps", "played"))
    for profile in config.PROFILES.values():
        world = profile.world_model
        print(line(profile.name, profile.frames.num_steps, profile.encoder.num_steps,
                   profile.tokenizer.num_steps, world.num_steps,
                   f"{world.num_layers} x {world.dim}", profile.policy.num_steps,
                   profile.policy.eval_episodes))
    print()
    for profile in config.PROFILES.values():
        print(f"{profile.name:9} {profile.purpose}")
    print()
    for name, fields in config.variants().items():
        changed = ", ".join(f"{key} = {value}" for key, value in fields.items())
        print(f"{name:22} {changed or 'as the profile says'}")


# ---- helpers

def _add(commands, name, command, text, *, needs_checkout=False) -> Parser:
    examples = "\n".join(f"  python -m hd {example}" for example in EXAMPLES[name])
    parser = commands.add_parser(name, help=text, description=text,
                                 epilog=f"examples:\n{examples}",
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(command=command, name=name, needs_checkout=needs_checkout)
    return parser


def _add_choices(parser, *, profile="quick") -> None:
    parser.add_argument("--profile", default=profile, help=_one_of(config.PROFILES))
    parser.add_argument("--variant", default="base", help="see hd profiles")
    parser.add_argument("--seed", type=_number, default=0)
    parser.add_argument("--games", default=",".join(GAMES), help="separated by commas")


def _add_publish_options(publish) -> None:
    publish.add_argument("--profile", help=_one_of(config.PROFILES))
    publish.add_argument("--benchmark", action="store_true",
                         help="what bench measured, instead of a profile")
    publish.add_argument("--variant", default="base", help="one, or all")
    publish.add_argument("--seed", type=_number, help="all seeds unless one is given")
    publish.add_argument("--weights", action="store_true",
                         help="the weights of one seed (default 0), not tables and figures")
    publish.add_argument("--dream", action="store_true",
                         help="what the book's playable dream needs of one seed's agents")
    publish.add_argument("--video", action="store_true",
                         help="videos of one seed's agents at play beside their dreams")
    publish.add_argument("--games", default=",".join(GAMES),
                         help="with --weights, --dream and --video: of the runs of these games "
                              "alone")


def _add_sweep_options(sweep) -> None:
    sweep.add_argument("--profile", default="audit", help=_one_of(config.PROFILES))
    sweep.add_argument("--variants", default="base", help="separated by commas; see hd profiles")
    sweep.add_argument("--seeds", default="0", help="separated by commas")
    sweep.add_argument("--games", default=",".join(GAMES), help="separated by commas")
    sweep.add_argument("--until", default=config.CHAIN[-1], metavar="NOTEBOOK",
                       help="the last notebook")
    sweep.add_argument("--cores", type=_number, default="all",
                       help="for the notebook that runs; they run one after the other")
    sweep.add_argument("--slurm", action="store_true", help="submit to SLURM: workflow/slurm")
    sweep.add_argument("-n", "--dry-run", action="store_true", help="only show what would run")


def _add_time_limit(parser) -> None:
    parser.add_argument("--time-limit", type=_number, metavar="SECONDS",
                        help="stop before, with a checkpoint; the same command continues")


def _choices(args) -> dict:
    return {"profile": args.profile, "variant": args.variant, "seed": args.seed,
            "games": config.check_games(args.games)}


def _number(text: str):
    """A number, or the text itself, about which the check of the value can say what is allowed."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _one_of(choices) -> str:
    return ", ".join(choices)


def _listed(values) -> str:
    return f"[{','.join(map(str, values))}]"


def _complain(message, code: int) -> int:
    with contextlib.suppress(BrokenPipeError):
        print(f"hd: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
    return code


def _print_anything() -> None:
    """What the output's encoding lacks (a bar of progress in cp1252) is substituted: no work may
    be lost for it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _forget_output() -> None:
    """Python flushes what is left at its end, and would complain about the closed pipe again."""
    with contextlib.suppress(OSError, ValueError):  # another kind of stream, in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
