"""Locks are given back, whatever happens; a signal ends a program, whatever it does."""

import gc
import os
import signal
import time

import pytest

from infra import storage
from infra.cli import run_cli
from infra.errors import UserError
from infra.run import Run
from infra.settings import RunSettings
from infra.storage import locked

fcntl = pytest.importorskip("fcntl")


class Other:
    """What another process would be told: a lock belongs to an open file, not to a process."""

    def __init__(self, folder):
        self.number = os.open(folder, os.O_RDONLY)

    def lock(self):
        fcntl.flock(self.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return self

    def release(self):
        os.close(self.number)


def is_free(folder):
    other = Other(folder)
    try:
        other.lock()
    except BlockingIOError:
        return False
    finally:
        other.release()
    return True


def test_asked_for_twice_it_needs_two_releases(tmp_path):
    first = locked(tmp_path)
    (tmp_path / "inner").mkdir()
    assert locked(tmp_path / "inner" / "..") is first  # the same folder
    first.release()
    assert not is_free(tmp_path)
    first.release()
    assert is_free(tmp_path)
    again = locked(tmp_path)
    assert again is not first and not is_free(tmp_path)
    again.release()


def test_folders_are_locked_one_by_one(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    first, second = map(locked, folders)
    first.release()
    assert is_free(folders[0]) and not is_free(folders[1])
    second.release()


def test_where_another_process_works_one_line_says_so(tmp_path):
    other = Other(tmp_path).lock()
    for _ in range(2):
        with pytest.raises(UserError, match="another process is at work there"):
            locked(tmp_path)
    other.release()
    locked(tmp_path).release()
    assert is_free(tmp_path)


def test_only_the_main_process_asks(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "is_main", lambda: False)
    assert locked(tmp_path) is None and is_free(tmp_path)


# ----------------------------------------------------------------------------------- of a run


@pytest.fixture
def no_gc():
    """So that what only a reference cycle holds is not collected by chance."""
    gc.disable()
    yield
    gc.enable()


def opened(folder, **settings):
    return Run(RunSettings(out=str(folder), **settings), "made-up")


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_a_run_gives_its_folder_back_at_the_end_of_its_with_block(tmp_path, no_gc, error):
    """Also while a reference cycle holds it, as an error's traceback does."""
    try:
        with opened(tmp_path) as run:
            run.itself = run
            assert not is_free(tmp_path)
            if error:
                raise error
    except (ValueError, KeyboardInterrupt) as raised:
        assert type(raised) is error
    assert is_free(tmp_path)


def test_each_of_two_runs_in_one_folder_gives_back_its_own_share(tmp_path, no_gc):
    first = opened(tmp_path)
    second = opened(tmp_path, resume=True)
    first.close()
    first.close()  # once more changes nothing
    assert not is_free(tmp_path)
    second.close()
    assert is_free(tmp_path)


def test_a_run_that_is_never_closed_gives_its_folder_back_with_its_last_reference(tmp_path, no_gc):
    """In a notebook, say; Run.latest does not count."""
    run = opened(tmp_path)
    assert Run.latest() is run and not is_free(tmp_path)
    del run
    assert Run.latest() is None and is_free(tmp_path)


def test_a_run_that_cannot_be_opened_gives_its_folder_back(tmp_path, no_gc):
    with opened(tmp_path) as run:
        run.begin("bc")
        run.end({})
    with pytest.raises(UserError, match="program") as refused:
        Run(RunSettings(out=str(tmp_path), resume=True), "another")
    assert is_free(tmp_path)
    assert refused.tb  # by which it is still held


def test_to_show_a_run_no_lock_is_needed(tmp_path):
    with opened(tmp_path) as run:
        run.begin("bc")
        run.end({})
        opened(tmp_path, show=1)
        assert not is_free(tmp_path)  # nor is one given back
    other = Other(tmp_path).lock()  # while another process works there
    opened(tmp_path, show=1)
    other.release()


def test_ctrl_c_inside_of_a_save_is_no_full_disk(tmp_path):
    """torch.save makes a RuntimeError of whatever is raised while it writes."""
    def put(file):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RuntimeError("the writer failed")

    with pytest.raises(KeyboardInterrupt):
        storage.atomic_write(tmp_path / "file", put)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def heeds_sigint():  # a shell's & has it ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_that_is_lost_comes_again(number, code, capsys, heeds_sigint):
    class Lossy:
        def __del__(self):  # whatever is raised here is ignored
            os.kill(os.getpid(), number)
            time.sleep(0.01)

    def main():
        Lossy()
        time.sleep(20)

    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(SystemExit) as ended:
        run_cli(main)
    assert ended.value.code == code and "stopped" in capsys.readouterr().err
    assert before == [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
