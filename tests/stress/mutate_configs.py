"""Run train.py on damaged configs: each config must either train or end with exit code 2 and one line of error.

python tests/stress/mutate_configs.py --count 1000

Each case damages one of the shipped configs: keys renamed, moved, doubled or dropped, values of other types and sizes,
truncated files, anchors, tags, bytes that are not text. train.py runs on it in a new process and in an empty folder,
and is stopped before it builds the network. Until then it checks the config, reads the data, and makes the data
pipeline and the learning rates.
"""

import collections
import datetime
import math
import multiprocessing
import os
import random
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml

import train
from src.arguments import whole
from src.config.load import all_keys
from src.errors import ArgumentParser, run
from src.training import network
from src.training.schedule import learning_rates

CONFIGS = sorted((Path(train.__file__).parent / "configs").rglob("*.yaml"))
# data.download stays as it is: a test must not use the network.
KEYS = sorted(key for key in all_keys() if "." in key and key != "data.download")
TEXTS = ["", " ", "x", "1", "null", "ü\u2028", "a\nb", "x" * 5000, "a/b", "mobilenet_v2", "{}"]
NUMBERS = [0, 1, -1, 2, 7, 3.7, -0.5, 0.1, 1e-300, 1e300, 10**30, -(10**30), math.inf, math.nan, 2**31, 2**63]
OTHERS = [None, True, False, [], [1], [0.5, 0.1], [None, "a"], [[]], list(range(1000)), {}, {"a": 1}, {"name": "sgd"}]
STRANGE = [datetime.date(2026, 1, 1), b"\xff\x00", {1, 2}]
VALUES = TEXTS + NUMBERS + OTHERS + STRANGE
LAUGHS = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9) if i else 'x'}]\n" for i in range(12))
SNIPPETS = [
    *("train: &a {epochs: *a}\n", "model: &m\n  name: *m\n", "x: *nowhere\n", "base: &b {lr: 1}\nrun:\n  <<: *b\n"),
    *("? [a, b]\n: c\n", "!!python/object/apply:os.getcwd []\n", "train: !!set {a, b}\n", "train: !unknown {a: 1}\n"),
    *("- 1\n", "---\ntrain: {epochs: 1}\n---\n{}\n", "%YAML 3.0\n---\n{}\n", "\t train: {}\n", "@", "`", "%", "{", "]"),
    *("[" * 3000, "{a: " * 3000, "train: {epochs: 2026-99-99}\n", "train: {epochs: 1_0}\n", "train: {epochs: 0x1F}\n"),
    *("train: {epochs: 1:30}\n", "train: {epochs: !!int x}\n", "train: {epochs: !!float ''}\n", "1: 2\n", "null: {}\n"),
    *(
        LAUGHS,
        f"{LAUGHS}train: {{epochs: *l11}}\n",
        "a: !!binary '*'\n",
        "a: !!timestamp x\n",
        "a: !!bool x\n",
        "<<: 3\n",
        "<<: [1]\n",
    ),
    *("train:\n  epochs: |\n    1\n", "train: {epochs: >-\n 3}\n", '"\\ud800": 1\n', '"\\x00": 1\n', "#" * 100_000),
]
OVERRIDES = ["", "null", "true", "[1", "{a: 1}", "&a [*a]", "1e5", "-3", "0", ".nan", "x", "'1'", "[]", "1e-400", "- 1"]
NO_OVERRIDES = ["epochs=1", "train.epochs", "=", ".=1", "train.=1", "a.b.c=1", "train.epochs==1", "x=y=z"]


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=whole(1, 10**9), default=1000, help="number of damaged configs (default: 1000)")
    parser.add_argument(
        "--seed",
        type=whole(0, 2**31 - 1),
        default=0,
        help="seed of the first case; the next cases count up from it (default: 0)",
    )
    parser.add_argument("--jobs", type=whole(1, 1024), default=2, help="processes at the same time (default: 2)")
    args = parser.parse_args()
    context = fresh_processes()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        seeds = range(args.seed, args.seed + args.count)
        outcomes = list(pool.map(lambda seed: try_case(seed, Path(folder) / str(seed), context), seeds))
    counts = collections.Counter((kind, verdict) for kind, verdict, _ in outcomes)
    print(f"{'':12}{'would train':>14}{'one error':>12}{'wrong':>8}")
    for kind in sorted(KINDS):
        print(f"{kind:12}{counts[kind, 'trains']:14}{counts[kind, 'error']:12}{counts[kind, 'wrong']:8}")
    wrong = [(seed, printed) for seed, (_, verdict, printed) in zip(seeds, outcomes) if verdict == "wrong"]
    for seed, printed in wrong:
        print(f"\n--seed {seed} --count 1:\n{printed[-1500:]}")
    trained, errors = (sum(verdict == which for _, verdict, _ in outcomes) for which in ("trains", "error"))
    print(
        f"\n{args.count} damaged configs: {trained} would train, {errors} end with one error, {len(wrong)} do neither"
    )
    sys.exit(1 if wrong else 0)


def fresh_processes():
    """Return a context whose processes are forked from a server that has imported train.py."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train", "src.training.network"])
    return context


def try_case(seed, folder, context):
    """Run train.py on a damaged config in the new `folder`; return (kind of damage, verdict, printed text).

    The verdict is "trains", "error" for exit code 2 with one line of error, or "wrong".
    """
    kind, content, overrides = damaged_config(random.Random(seed))
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_bytes(content)
    process = context.Process(target=run_train, args=(["--config", "config.yaml", *overrides], folder))
    process.start()
    process.join(120)
    hangs = process.is_alive()
    process.kill()
    process.join()
    printed = (folder / "stderr").read_text(errors="replace")
    if process.exitcode == 0 and not printed:
        return kind, "trains", printed
    if process.exitcode == 2 and re.fullmatch(r"error: [^\n]+\n", printed):
        return kind, "error", printed
    return kind, "wrong", f"{overrides} exit code {process.exitcode}{', it hung' if hangs else ''}\n{printed}"


class WouldTrainError(Exception):
    """train.py has done everything before the network without an error."""


def run_train(arguments, folder):
    """Run train.py in `folder` until it would build the network, with stderr in a file there."""
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open("stderr", os.O_WRONLY | os.O_CREAT), 2)
    sys.argv = ["train.py", *arguments]
    original = train.train

    def begin(config, *others):
        learning_rates(config, 40)
        original(config, *others)

    def stop(*_):
        raise WouldTrainError

    train.train, network.prepare_network = begin, stop
    try:
        run(train.main)
    except WouldTrainError:
        sys.exit(0)


def damaged_config(chance):
    """Return (kind of damage, bytes of the config file, overrides), chosen by the random generator `chance`."""
    text = chance.choice(CONFIGS).read_text()
    kind = chance.choice(sorted(KINDS))
    damaged = KINDS[kind](chance, text)
    if kind == "override":
        return kind, text.encode(), damaged
    return kind, damaged if isinstance(damaged, bytes) else damaged.encode(), []


def rename_key(chance, text):
    tree = yaml.safe_load(text)
    section = chance.choice([None, *tree])
    branch = tree if section is None else tree[section]
    name = chance.choice(list(branch))
    at = chance.randrange(len(name))
    shorter, longer = name[:at] + name[at + 1 :], name[:at] + name[at:].rjust(len(name) - at + 1, "x")
    new = chance.choice([shorter, longer, name.upper(), name[::-1], f"{name} ", ""])
    renamed = {new if key == name else key: value for key, value in branch.items()}
    return dump(renamed if section is None else {**tree, section: renamed})


def move_key(chance, text):
    tree = yaml.safe_load(text)
    source, target = chance.choice(list(tree)), chance.choice([*tree, "schedule", "runtime"])
    name = chance.choice(list(tree[source]))
    value = tree[source].pop(name)
    tree.setdefault(target, {})[name] = value
    return dump(tree)


def drop_keys(chance, text):
    tree = yaml.safe_load(text)
    for _ in range(chance.randint(1, 3)):
        section = chance.choice(list(tree))
        if chance.random() < 0.2 or not tree[section]:
            tree[section] = chance.choice([None, {}, [], "x", 3])
        elif isinstance(tree[section], dict):
            tree[section].pop(chance.choice(list(tree[section])))
    return dump(tree)


def change_values(chance, text):
    tree = yaml.safe_load(text)
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        section, name = chance.choice(KEYS).split(".")
        tree.setdefault(section, {})[name] = chance.choice(VALUES)
    return dump(tree)


def shift_numbers(chance, text):
    """Multiply, negate or slightly change numbers in the file."""

    def shifted(match):
        if chance.random() < 0.7:
            return match[0]
        return str(chance.choice([float(match[0]) * 10, -float(match[0]), int(float(match[0])) + 1, 0, f"{match[0]}0"]))

    return re.sub(r"(?<=[ \[])-?\d+(?:\.\d+)?(?:e-?\d+)?(?=[\n,\]])", shifted, text)


def override(chance, text):
    if chance.random() < 0.2:
        return [chance.choice(NO_OVERRIDES)]
    return [f"{chance.choice(KEYS)}={chance.choice(OVERRIDES)}" for _ in range(chance.choice([1, 1, 2]))]


def truncate(chance, text):
    return text.encode()[: chance.randrange(len(text))]


def double_line(chance, text):
    lines = text.splitlines(keepends=True)
    line = chance.randrange(len(lines))
    lines.insert(chance.choice([line, chance.randrange(len(lines))]), lines[line])
    return "".join(lines)


def indent_line(chance, text):
    lines = text.splitlines(keepends=True)
    line = chance.randrange(len(lines))
    lines[line] = chance.choice(["\t", " ", "    ", "- "]) + lines[line].lstrip()
    return "".join(lines)


def insert_snippet(chance, text):
    lines = text.splitlines(keepends=True) if chance.random() < 0.7 else []
    lines.insert(chance.choice([0, len(lines), chance.randint(0, len(lines))]), chance.choice(SNIPPETS))
    return "".join(lines)


def insert_characters(chance, text):
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(text))
        text = text[:at] + chance.choice(":{}[],&*#?|-<>=!%@`\"'\\\t \n\u2028\u00e9\U0001f600~0") + text[at + 1 :]
    return text


def spoil_bytes(chance, text):
    content = bytearray(text.encode())
    for _ in range(chance.randint(1, 4)):
        content[chance.randrange(len(content))] = chance.choice([0, 7, 27, 127, 128, 0xC3, 0xFE, 0xFF])
    return chance.choice([bytes(content), bytes(content), text.encode("utf-16"), b"\xef\xbb\xbf" + text.encode(), b""])


KINDS = {
    "rename": rename_key,
    "move": move_key,
    "drop": drop_keys,
    "value": change_values,
    "number": shift_numbers,
    "override": override,
    "cut": truncate,
    "double": double_line,
    "indent": indent_line,
    "snippet": insert_snippet,
    "character": insert_characters,
    "bytes": spoil_bytes,
}


def dump(tree):
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


if __name__ == "__main__":
    run(main)
