"""Refused handshakes reach the server's log; everything else on standard error passes through."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedpeft.deployment.wire.tls_failures import find_handshake_error

LINE = (
    b"I1125 02:40:41.578482   10644 ssl_transport_security.cc:2563] Handshake failed with error SSL_ERROR_SSL: "
    b"error:1000007d:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: certificate has expired\n"
)


@pytest.mark.fast
def test_the_reason_is_read():
    assert find_handshake_error(LINE) == "certificate verify failed: certificate has expired"
    assert find_handshake_error(b"Traceback (most recent call last):\n") is None


@pytest.mark.medium
def test_other_lines_pass_through():
    code = (
        "import os\n"
        "from fedpeft.deployment.wire.tls_failures import Handshakes\n"
        "heard = []\n"
        "with Handshakes(heard.append):\n"
        f"    os.write(2, {LINE!r})\n"
        "    os.write(2, b'something else\\n')\n"
        "print(heard)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['certificate verify failed: certificate has expired']"
    assert done.stderr == "something else\n"
