"""What every program does around its main(): errors as one line, signals, memory, the device."""

import contextlib
import ctypes
import os
import signal
import sys

import torch

from infra import processes
from infra.errors import UserError
from infra.processes import is_main
from infra.run import Run, Stopped


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a program as Ctrl-C does."""


def run_cli(main):
    """Run a program: what the user can fix is one line on standard error and exit code 2."""
    keep_memory()
    streams = sys.stdout, sys.stderr
    out, err = map(Forgiving, streams)
    sys.stdout, sys.stderr = out, err
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGTERM, stop)
        if handlers[1] is signal.default_int_handler:  # a shell's & has Ctrl-C ignored
            signal.signal(signal.SIGINT, stop)
        processes.start()
        try:
            main()
        except Stopped as done:  # all processes stop at the same step
            print(done)
        processes.end()
    except BrokenPipeError:  # nobody reads on
        out.silence()
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        if "--debug" in sys.argv or isinstance(error, RuntimeError) and not of_memory(error):
            raise
        if is_main() or not getattr(error, "told_by_main", False):
            lines = str(error).splitlines()
            text = (f"not enough memory for these settings{': '.join(['', *lines[:1]])}"
                    if of_memory(error) else " ".join(lines))
            print(f"error: {text}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stopped:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        if is_main():
            run = Run.latest() if Run.latest else None
            print(f"\nstopped{run.resume_command() if run else ''}", file=sys.stderr)
        sys.exit(128 + (signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT))
    finally:
        sys.stdout.flush()
        sys.stdout, sys.stderr = streams
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), handlers):
            signal.signal(number, handler or signal.SIG_DFL)


class Forgiving:
    """A text stream to print to, whose troubles end nothing: a run does not die of a print.

    What its encoding lacks is printed as ?; after an error, a closed pipe's say, it is silent.
    """

    def __init__(self, stream):
        self.stream, self.broken = stream, stream is None

    def write(self, text):
        if not self.broken:
            try:
                self.stream.write(text)
            except UnicodeEncodeError:
                encoding = self.stream.encoding
                self.write(text.encode(encoding, "replace").decode(encoding))
            except (OSError, ValueError):
                self.silence()
        return len(text)

    def flush(self):
        if not self.broken:
            try:
                self.stream.flush()
            except (OSError, ValueError):
                self.silence()

    def silence(self):
        self.broken = True
        with contextlib.suppress(OSError, ValueError, AttributeError):  # nor at the very end
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name):
        return getattr(self.stream, name)


def of_memory(error):
    """Whether there was no room for an array; PyTorch has no exception of its own for a CPU's."""
    said = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed")
    return (isinstance(error, (MemoryError, torch.OutOfMemoryError))
            or isinstance(error, RuntimeError) and any(text in str(error) for text in said))


def stop(number, frame):
    """End the program; try again in a second, should this be lost where exceptions are ignored."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, lambda *_: stop(number, None))
        signal.setitimer(signal.ITIMER_REAL, 1.0)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def keep_memory():
    """Let glibc keep the memory of a freed tensor for the next one.

    By default it gives large blocks back to the kernel, which has to clear every page when it hands
    them out again: 6 to 15 % of a training step at width 128 (`python -m benchmarks.memory`). With
    another C library nothing happens.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # from malloc.h
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_TOP_PAD, 2**26)


def choose_device(name):
    """The device of --device, by default a GPU where there is one. A CPU computes on one thread.

    Several are slow beside other work, as they wait for each other at every operation; processes
    (torchrun) are not (docs/speed.md). OMP_NUM_THREADS in the environment asks for more.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: must be cpu or cuda")
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f"--device {name}, but this PyTorch sees "
                            f"{torch.cuda.device_count() or 'no'} CUDA device")
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes of torchrun's on this machine
        if here > torch.cuda.device_count():
            raise UserError(f"{here} processes on a machine with {torch.cuda.device_count()} CUDA "
                            "device: each needs its own")
        torch.cuda.set_device(processes.rank() % torch.cuda.device_count() if device.index is None
                              else device)
        torch.backends.cuda.enable_cudnn_sdp(False)  # it makes a plan for each new shape: slow
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    return device
