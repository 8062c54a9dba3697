"""What a script or a launcher starts as a fresh interpreter becomes a fork of its process, which has imported torch.

For ``Job(..., before=fork_python)``. The processes are real, with streams, signals and sessions as they were asked for;
only the seconds of importing are saved.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import weakref


def fork_python() -> None:
    """From here on ``subprocess`` forks this process wherever it is told to start this interpreter."""
    subprocess.Popen = ForkedPython


class ForkedPython(subprocess.Popen):
    """A fork in the place of this interpreter; other programs are started as ever."""

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):
        words = [args] if isinstance(args, str | os.PathLike) else [os.fspath(word) for word in args]
        if words[0] != sys.executable:
            return super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
        pipes, starts_session = rest[3:9], rest[14]
        process = multiprocessing.get_context("fork").Process(target=_interpret, args=(words[1:],))
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            weakref.finalize._registry.clear()  # the temporary folders of this process are not the fork's to remove
            for own, theirs in enumerate((pipes[0], pipes[3], pipes[5])):
                if theirs != -1:
                    os.dup2(theirs, own)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
                signal.signal(number, signal.SIG_DFL)  # as exec leaves them; a launcher's handlers are its own
            if starts_session:
                os.setsid()
            if preexec_fn is not None:
                preexec_fn()
            if env is not None:
                os.environ.clear()
                os.environ.update(env)
            os.chdir(cwd or ".")
            os._exit(process._bootstrap())
        self._child_created = True
        self._close_pipe_fds(*pipes)
        return None


def _interpret(words: list[str]) -> None:
    """Do what Python does with its command line."""
    sys.argv = words
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(words[1], {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(words[0]))
        runpy.run_path(words[0], run_name="__main__")
