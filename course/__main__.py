"""The course's command line.

    python -m course                      # the exercises, what is done, what comes next
    python -m course start gold           # writes course/work/gold.py: a hole to be filled
    python -m course check gold           # or all; --watch checks again whenever the file changes
    python -m course hint gold            # one hint more each time
    python -m course solution gold        # the project's own, and how yours differs
    python -m course run bug-hunt         # the runs that an exercise is about
    python -m course figures              # the pictures of the lectures
    python -m course notebook             # executes the notebook anew

Grading, without a network: the folders of a class, a line for each, and a report for other programs

    python -m course check all --work class/* --junit results.xml
"""

import argparse
import difflib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).parent
SECONDS = float(os.environ.get("COURSE_SECONDS", 20))  # that a check may take: most take one
STATE = "progress.json"  # in the folder of the work: what was passed, and which hints were shown


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m course", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", default="list", choices=COMMANDS, metavar="command",
                        help="list, start, check, ..., as above")
    parser.add_argument("name", nargs="?", default="", help="an exercise")
    parser.add_argument("--work", nargs="+", type=Path, default=[HERE / "work"],
                        help="folder of the answers; to check all, several")
    parser.add_argument("--watch", action="store_true", help="check again after each change")
    parser.add_argument("--junit", type=Path, help="write the results of check as JUnit's XML")
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)  # of a check in a process
    args = parser.parse_args(argv)
    try:
        COMMANDS[args.command](args)
    except Refused as refused:
        sys.exit(f"error: {refused}")
    except KeyboardInterrupt:
        sys.exit(130)


class Refused(Exception):
    """What the user can fix, in a line."""


# ------------------------------------------------------------------------------------- for students


def show_list(args):
    work, done = args.work[0], state(args.work[0])
    print(f"{'exercise':16}{'minutes':>8}{'level':>7}{'points':>8}   state")
    following = None
    for name, exercise in exercises().items():
        passed = len(done.get(name, {}).get("passed", []))
        complete = passed == len(exercise.stages)
        begun = file_of(work, name).exists()
        said = ("done" if complete else f"{passed} of {len(exercise.stages)} stages" if passed
                else "begun" if begun else "")
        print(f"{name:16}{exercise.minutes:8}{'*' * exercise.difficulty:>7}{exercise.points:8}"
              f"   {said}")
        if not complete and following is None:
            following = exercise
    if following is None:
        print("\nAll done. What comes next is a task, a loss or a filter of your own: README.md.")
        return
    begun = file_of(work, following.name).exists()
    print(f"\nnext: {following.goal}\n      python -m course {'check' if begun else 'start'} "
          f"{following.name}")


def start(args):
    exercise, file = chosen(args), file_of(args.work[0], args.name)
    if file.exists():
        raise Refused(f"{shown(file)} is there already: check it, or delete it to start again")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(exercise.starter(), encoding="utf-8")
    before = [name for name in exercise.after
              if len(state(args.work[0]).get(name, {}).get("passed", [])) == 0]
    print(f"{shown(file)}: {exercise.goal}")
    if before:
        print(f"It builds on {' and '.join(before)}.")
    print(f"About {exercise.minutes} minutes. Fill in the hole, then: python -m course check "
          f"{args.name}")


def check(args):
    if args.name == "all":
        grade(args)
        return
    exercise, file = chosen(args), file_of(args.work[0], args.name)
    seen = None
    while True:
        if not file.exists():
            raise Refused(f"there is no {shown(file)}: python -m course start {args.name}")
        text = file.read_text(encoding="utf-8")
        if text != seen:
            passed, wrong = checked(exercise, text, shown(file), args)
            if not args.results:
                print_check(exercise, file, passed, wrong)
        if not args.watch:
            break
        seen = text
        time.sleep(0.5)
    if wrong and not args.results:
        sys.exit(1)


def checked(exercise, text, where, args):
    """An exercise's check, ended where it takes too long -> (titles passed, what is wrong)."""

    def too_long():
        said = f"no answer within {SECONDS:g} seconds: is there a loop without end?"
        report(args, exercise.name, [], said)
        if not args.results:
            print(f"{exercise.name}: {said}")
        sys.stdout.flush()
        os._exit(1)

    watchdog = threading.Timer(SECONDS, too_long)
    watchdog.start()
    try:
        passed, wrong = exercise.check(text, where)
    finally:
        watchdog.cancel()
    report(args, exercise.name, passed, wrong)
    return passed, wrong


def report(args, name, passed, wrong):
    """Keep what a check said: for the list, or for the process that grades."""
    if args.results:
        with open(args.results, "a", encoding="utf-8") as file:
            file.write(json.dumps([name, passed, wrong]) + "\n")
    else:
        update(args.work[0], name, passed=passed)


def print_check(exercise, file, passed, wrong):
    print(f"{exercise.name}: {shown(file)}")
    for title in passed:
        print(f"  right   {title}")
    if not wrong:
        print(f"All right: {exercise.points} points. Compare: python -m course solution "
              f"{exercise.name}")
        return
    print(f"  wrong   {list(exercise.stages)[len(passed)]}\n          {wrong}")
    print(f"{points(exercise, passed):g} of {exercise.points} points. "
          f"A hint: python -m course hint {exercise.name}")


def hint(args):
    exercise = chosen(args)
    shown_before = state(args.work[0]).get(args.name, {}).get("hints", 0)
    count = min(shown_before + 1, len(exercise.hints))
    for number, text in enumerate(exercise.hints[:count], 1):
        print(f"{number}. {text}")
    print("(once more for the next one)" if count < len(exercise.hints) else "(that was the last)")
    update(args.work[0], args.name, hints=count)


def solution(args):
    exercise, file = chosen(args), file_of(args.work[0], args.name)
    print(exercise.solution())
    if file.exists():
        print(f"# how {shown(file)} differs")
        lines = (text.splitlines() for text in (exercise.solution(),
                                                file.read_text(encoding="utf-8")))
        print("\n".join(difflib.unified_diff(*lines, "the project", shown(file), lineterm="", n=1)))


def run(args):
    exercise, file = chosen(args), file_of(args.work[0], args.name)
    if exercise.run is None:
        raise Refused(f"{args.name} is about no runs; only "
                      f"{' and '.join(name for name, e in exercises().items() if e.run)} are")
    if not file.exists():
        raise Refused(f"begin with: python -m course start {args.name}")
    exercise.run(file.with_suffix("").with_name(args.name), file.read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------ for lecturers


def grade(args):
    """Check all exercises of one or several folders; a table of points, and JUnit's XML."""
    table = {folder: graded(folder) for folder in args.work if folder.is_dir()}
    if not table:
        raise Refused(f"no such folder: {' '.join(map(str, args.work))}")
    width = max(len(str(folder)) for folder in table)
    for folder, results in table.items():
        if len(table) == 1:
            for name, (passed, wrong) in results.items():
                exercise = exercises()[name]
                print(f"{name:16}{points(exercise, passed):5g} of {exercise.points}   {wrong}")
    total = sum(exercise.points for exercise in exercises().values())
    for folder, results in table.items():
        own = sum(points(exercises()[name], passed) for name, (passed, _) in results.items())
        print(f"{str(folder):{width}}  {own:5g} of {total} points, "
              f"{sum(not wrong for _, wrong in results.values())} of {len(results)} exercises done")
    if args.junit:
        args.junit.write_text(junit(table), encoding="utf-8")


def graded(folder):
    """{exercise: (titles passed, what is wrong)}, each checked in a process that may fail."""
    results = {name: ([], "not begun") for name in exercises()}
    left = [name for name in results if file_of(folder, name).exists()]
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "results"
        while left:  # a process checks what is left; one that ends early goes on after it
            before = len(left)
            subprocess.run([sys.executable, "-m", "course", "several", ",".join(left), "--work",
                            folder.resolve(), "--results", file], cwd=HERE.parent,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            said = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
            for name, passed, wrong in map(json.loads, said):
                results[name] = passed, wrong
            left = [name for name in left if results[name][1] == "not begun"]
            if len(left) == before:
                results[left.pop(0)] = [], "the check ended without a result"
    return results


def several(args):
    """The process that grades: check some exercises, one after the other."""
    for name in args.name.split(","):
        args.name = name
        check(args)


def junit(table):
    """The results as JUnit's XML, which systems for grading read."""
    root = ElementTree.Element("testsuites")
    for folder, results in table.items():
        suite = ElementTree.SubElement(root, "testsuite", name=folder.name, tests=str(len(results)),
                                       failures=str(sum(bool(w) for _, w in results.values())))
        for name, (passed, wrong) in results.items():
            exercise = exercises()[name]
            case = ElementTree.SubElement(suite, "testcase", classname=folder.name, name=name)
            ElementTree.SubElement(case, "system-out").text = (
                f"{points(exercise, passed):g} of {exercise.points} points")
            if wrong:
                ElementTree.SubElement(case, "failure", message=wrong)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


# ----------------------------------------------------------------------------------------- the rest


def figures(args):
    from course.figures import draw
    draw(HERE / "figures", args.work[0])


def notebook(args):
    from course.make_notebook import build
    build()


def exercises():
    from course import exercises  # late: it needs torch, and takes its seconds
    return exercises.exercises()


def chosen(args):
    args.name = args.name.replace("_", "-").removesuffix(".py")
    if args.name not in exercises():
        near = difflib.get_close_matches(args.name, exercises(), 1)
        raise Refused(f"{args.name or 'which exercise'}? " + (
            f"Did you mean {near[0]}?" if near else f"There are {', '.join(exercises())}"))
    return exercises()[args.name]


def points(exercise, passed):
    """In proportion to the stages passed."""
    return round(exercise.points * len(passed) / len(exercise.stages), 1)


def file_of(work, name):
    return work / f"{name.replace('-', '_')}.py"


def shown(file):
    """A path as short as it can be said."""
    return os.path.relpath(file) if file.is_absolute() else str(file)


def state(work):
    file = work / STATE
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def update(work, name, **changes):
    known = state(work)
    known[name] = known.get(name, {}) | changes
    work.mkdir(parents=True, exist_ok=True)
    (work / STATE).write_text(json.dumps(known, indent=1), encoding="utf-8")


COMMANDS = {"list": show_list, "start": start, "check": check, "hint": hint, "solution": solution,
            "run": run, "figures": figures, "notebook": notebook, "several": several}

if __name__ == "__main__":
    main()
