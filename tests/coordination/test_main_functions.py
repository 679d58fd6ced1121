"""Functions of a script or notebook: their globals behave in a worker as they do at home."""

from __future__ import annotations

import subprocess
import sys
import textwrap


def run_script(tmp_path, text: str) -> list[str]:
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(text))
    done = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_the_initializer_sets_is_there_for_every_item(two_fakes, tmp_path):
    """Load the model once: also when the script gives the global a first value."""
    lines = run_script(
        tmp_path,
        """
        import exo.gpu as gpu

        model = None

        def prepare(name):
            global model, unheard_of
            model, unheard_of = name, name * 2

        def work(item):
            return model, unheard_of, item

        with gpu.GPUExecutor(initializer=prepare, initargs=("m",)) as executor:
            print(list(executor.map(work, range(3))))
            print(executor.submit(work, 9).result())
        """,
    )
    assert lines == ["[('m', 'mm', 0), ('m', 'mm', 1), ('m', 'mm', 2)]", "('m', 'mm', 9)"]


def test_what_the_caller_defines_anew_is_new_in_the_worker_too(two_fakes, tmp_path):
    """A notebook's cell is run again: the old helper and the old value are gone."""
    lines = run_script(
        tmp_path,
        """
        import exo.gpu as gpu

        scale = 1

        def helper(item):
            return item

        def work(item):
            return scale * helper(item)

        with gpu.GPUExecutor(devices="cuda:0") as executor:
            print(list(executor.map(work, [1, 2])))
            scale = 10
            def helper(item):
                return item + 1
            print(list(executor.map(work, [1, 2])))
            scale = 1
            print(list(executor.map(work, [1, 2])))
        """,
    )
    assert lines == ["[1, 2]", "[20, 30]", "[2, 3]"]


def test_a_counter_in_a_worker_counts_on(two_fakes, tmp_path):
    lines = run_script(
        tmp_path,
        """
        import exo.gpu as gpu

        count = 0

        def work(_):
            global count
            count += 1
            return count

        with gpu.GPUExecutor(devices="cuda:0") as executor:
            print([executor.submit(work, 0).result() for _ in range(3)])
        """,
    )
    assert lines == ["[1, 2, 3]"]


def test_classes_of_the_script_travel_and_come_back(two_fakes, tmp_path):
    lines = run_script(
        tmp_path,
        """
        import exo.gpu as gpu

        class Box:
            def __init__(self, value):
                self.value = value

        class Full(Exception):
            pass

        def work(box):
            if box.value == 2:
                raise Full("two")
            return Box(box.value + 1)

        with gpu.GPUExecutor() as executor:
            first, second = (executor.submit(work, Box(value)) for value in (1, 2))
            print(isinstance(first.result(), Box), first.result().value)
            try:
                second.result()
            except Full as error:
                print("Full", error)
        """,
    )
    assert lines == ["True 2", "Full two"]


def test_what_the_initializer_puts_into_a_container_stays(two_fakes, tmp_path):
    """The usual way to load once: a dictionary of models, filled in place."""
    lines = run_script(
        tmp_path,
        """
        import exo.gpu as gpu

        MODELS = {}
        limits = [1]

        def prepare(name):
            MODELS["m"] = name

        def work(item):
            if "lazy" not in MODELS:
                MODELS["lazy"] = item
            return MODELS["m"], MODELS["lazy"], limits[0]

        with gpu.GPUExecutor(devices="cuda:0", initializer=prepare, initargs=("x",)) as executor:
            print(list(executor.map(work, [5, 6])), executor.submit(work, 7).result())
            limits[0] = 2
            print(executor.submit(work, 8).result())
        """,
    )
    assert lines == ["[('x', 5, 1), ('x', 5, 1)] ('x', 5, 1)", "('x', 5, 2)"]
