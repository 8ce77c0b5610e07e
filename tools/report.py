"""Compare runs in one HTML file: python tools/report.py runs/quickstart runs/other --output report.html"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import src  # noqa: F401 - first, because from here on a signal ends the script with one line

# isort: split

import re
from pathlib import Path

from src.arguments import whole
from src.config.schema import SPLITS
from src.errors import ArgumentParser, UserError, run
from src.files import make_parent, write_text
from src.outputs import add_overwrite, check_outputs, output_files


def main():
    args = parse()

    from src.report.page import render
    from src.report.runs import examine, read_run

    overrides = [text for text in args.runs if is_override(text)]
    runs = [read_run(path) for path in args.runs if not is_override(path)]
    findings, split = [], args.split or "evaluation"
    for evaluated in runs:
        print(f"evaluating {Path(evaluated.name) / 'best.ckpt'} on the {split} split ...", flush=True)
        findings.append(examine(evaluated, args.split or "eval", args.mistakes, overrides))
    write_text(render(runs, findings, split), make_parent(args.output))
    print(f"written: {args.output}")


def parse():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="run folders of train.py, finished or not")
    parser.add_argument("--output", default="report.html", metavar="PATH", help="default: report.html")
    add_overwrite(parser)
    parser.add_argument(
        "--split", choices=SPLITS, help="which images to evaluate (default: what training evaluated on)"
    )
    parser.add_argument(
        "--mistakes",
        type=whole(0, 1000),
        default=24,
        metavar="N",
        help="wrong predictions to show per run (default: 24)",
    )
    parser.epilog = "A section.key=value among the folders, such as data.root=…, changes a setting of all evaluations."
    args = parser.parse_intermixed_args()
    check_outputs(output_files("--output", args.output, ".html"), {}, args.overwrite)
    if all(map(is_override, args.runs)):
        raise UserError(f"no run folder is given, only {args.runs[0]}")
    return args


def is_override(text):
    """Return whether `text` is a setting, section.key=value, and not a run folder."""
    return bool(re.match(r"\w+\.\w+=", text)) and not Path(text).exists()


if __name__ == "__main__":
    run(main)
