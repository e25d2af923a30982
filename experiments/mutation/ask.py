"""Ask the server of `experiments.mutation.server` whether the tests pass; the command that cosmic-ray runs.

Cosmic-ray starts this script for each mutant, so it imports nothing but sockets. The exit code is that of pytest.
"""

import os
import socket
import sys

with socket.socket(socket.AF_UNIX) as channel:
    channel.connect(os.environ["MUTATION_SOCKET"])
    answer = b"".join(iter(lambda: channel.recv(65536), b""))
code, _, output = answer.partition(b"\n")
sys.stdout.write(output.decode(errors="replace"))
sys.exit(int(code))
