"""The watch over the other ranks, where two threads meet; real ranks end in test_launchers/test_endings.py."""
import subprocess
import sys

_RACE = '''
import socket, sys, threading
from boxdet.engine import peer_watch
from boxdet.errors import run_command

watch = peer_watch.PeerWatch(0, 1, 0, 'localhost', lambda value: value)
watch._heard.wait()  # alone, it had nobody to listen to
watch._heard.clear()
own, other = socket.socketpair()
watch._lines[own] = 1, 'elsewhere, process 5'
ending = threading.Event()
waiting, wait = threading.Event(), watch._heard.wait
watch._heard.wait = lambda seconds: (waiting.set(), wait(seconds))
log = peer_watch._log
peer_watch._log = lambda text: (ending.set(), waiting.wait(30), log(text))  # the main thread comes in between
threading.Thread(target=watch._listen, daemon=True).start()

def main():
    other.close()                                                          # rank 1 is killed,
    ending.wait()                                                          # the watch notices,
    raise RuntimeError('gloo/transport: Connection closed by peer')        # and then the collective does

run_command(main)
'''


def test_a_collective_that_fails_while_the_watch_says_why_adds_nothing():
    done = subprocess.run([sys.executable, '-c', _RACE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == ('error: rank 1 (elsewhere, process 5) ended without a word: it was killed, or its machine '
                           'ran out '
                           'of memory; see docs/troubleshooting.md#it-hangs\n')
