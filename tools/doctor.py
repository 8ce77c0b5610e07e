"""Check this machine: what is installed, what is missing, and whether training computes what it must.

python tools/doctor.py

It takes about two minutes on two processor cores. It writes everything to doctor.json, which you can
attach to a question. The exit code is 1 if a line is wrong. docs/scale.md explains the lines.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import src  # noqa: F401 - first, because from here on a signal ends the script with one line

# isort: split

import argparse
import time
from dataclasses import asdict

from src.config.load import make_config
from src.errors import ArgumentParser, run
from src.outputs import add_overwrite, check_outputs, output_files


def main():
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu, gpu or ascend (default: auto)")
    parser.add_argument("--json", default="doctor.json", metavar="PATH", help="file to write (default: doctor.json)")
    add_overwrite(parser)
    args = parser.parse_args()
    check_outputs(output_files("--json", args.json, ".json"), {}, args.overwrite)
    runtime = make_config({"runtime": {"device": args.device}}, [], "--device").runtime

    import mindspore as ms

    from src.doctor.machine import WRONG, facts
    from src.doctor.proof import prove, prove_ranks
    from src.files import write_json
    from src.runtime.device import use_device
    from src.versions import versions

    began = time.perf_counter()
    use_device(runtime)
    device = ms.get_context("device_target").lower()
    report = {"versions": versions(), "device": device, "facts": [], "families": []}
    for fact in facts():
        report["facts"].append(asdict(fact))
        print_line(fact.state, fact.name, fact.found, fact.advice)
    print(f"\n5 training steps and an evaluation on {device}, compared with PyNative and stock operators on the CPU:")
    for row in prove(device):
        report["families"].append(row)
        print_family(row)
    report["ranks"] = prove_ranks(device)
    print_line(report["ranks"]["state"], "two ranks", report["ranks"]["found"])
    report["seconds"] = time.perf_counter() - began
    write_json(report, args.json)
    rows = [*report["facts"], *report["families"], report["ranks"]]
    wrong = sum(row["state"] == WRONG for row in rows)
    print(f"\n{len(rows)} lines, {wrong} wrong; {report['seconds']:.0f} s; everything is in {args.json}")
    sys.exit(1 if wrong else 0)


def print_line(state, name, found, advice=""):
    print(f"{state:<8}{name:<24}{found}{f'; {advice}' if advice else ''}", flush=True)


def print_family(row):
    plan = row["plan_images_per_second"]
    print_line(
        row["state"],
        f"{row['family']} {row['width']}",
        f"{row['precision']}: losses differ by {row['loss_difference']:.1e}, weights' changes by "
        f"{row['change_difference']:.1e}; {row['images_per_second']:,.0f} images/s at {row['image_size']} pixels "
        f"(plan: {'no data sheet' if plan is None else f'at most {plan:,.0f}'}), "
        f"{row['data_wait_fraction']:.0%} waiting for images",
    )


if __name__ == "__main__":
    run(main)
