"""One HTML file that compares runs: python tools/report.py runs/quickstart runs/other --output report.html"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.config.schema import SPLITS
from src.errors import ArgumentParser, UserError, run
from src.files import make_parent, write_text
from src.report.page import render
from src.report.runs import examine, read_run


def main():
    args = parse()
    overrides = [text for text in args.runs if is_override(text)]
    runs = [read_run(path) for path in args.runs if not is_override(path)]
    if not runs:
        raise UserError(f"no run folder is given, only {overrides[0]}")
    findings, split = [], args.split or "evaluation"
    for own in runs:
        print(f"evaluating {Path(own.name) / 'best.ckpt'} on the {split} split ...", flush=True)
        findings.append(examine(own, args.split or "eval", args.mistakes, overrides))
    write_text(render(runs, findings, split), make_parent(args.output))
    print(f"written: {args.output}")


def parse():
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="run folders of train.py, finished or not")
    parser.add_argument("--output", default="report.html", metavar="PATH", help="default: report.html")
    parser.add_argument(
        "--split", choices=SPLITS, help="which images to evaluate (default: what training evaluated on)"
    )
    parser.add_argument("--mistakes", type=int, default=24, metavar="N", help="how many to show a run (default: 24)")
    parser.epilog = "section.key=value among the folders changes a setting of all evaluations, such as data.root=…"
    args = parser.parse_intermixed_args()
    if args.mistakes < 0:
        raise UserError(f"--mistakes {args.mistakes}: must be at least 0")
    if Path(args.output).suffix != ".html":
        raise UserError(f"--output {args.output}: must end with .html")
    return args


def is_override(text):
    """Tell a setting, section.key=value, from a run folder."""
    return bool(re.match(r"\w+\.\w+=", text)) and not Path(text).exists()


if __name__ == "__main__":
    run(main)
