"""Refused handshakes reach the server's log; everything else on standard error passes through."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fedpeft.deployment.wire.tls_failures import find_handshake_error

LINE = (
    b"I1125 02:40:41.578482   10644 ssl_transport_security.cc:2563] Handshake failed with error SSL_ERROR_SSL: "
    b"error:1000007d:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: certificate has expired\n"
)

OTHER_NAME = b"E1202 08:49:18.942251    1218 ssl_transport_security.cc:3238] No match found for server name: vm\n"
NO_PORT = b"E1202 08:54:09.356010   18935 add_port.cc:83] Failed to add port to server: No address added\n"


@pytest.mark.fast
def test_the_reason_is_read():
    assert find_handshake_error(LINE) == "certificate verify failed: certificate has expired"
    unverified = b"BAD_PACKET_LENGTH: Invalid certificate verification context"
    plain = LINE.replace(b"CERTIFICATE_VERIFY_FAILED: certificate has expired", unverified)
    assert find_handshake_error(plain) == "bad packet length"
    assert "looks for vm," in (find_handshake_error(OTHER_NAME) or "")
    assert find_handshake_error(b"Traceback (most recent call last):\n") is None


@pytest.mark.medium
def test_other_lines_pass_through():
    code = (
        "import os\n"
        "from fedpeft.deployment.wire.tls_failures import Handshakes\n"
        "heard = []\n"
        "with Handshakes(heard.append):\n"
        f"    os.write(2, {LINE!r})\n"
        f"    os.write(2, {NO_PORT!r})\n"
        "    os.write(2, b'something else\\n')\n"
        "print(heard)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['certificate verify failed: certificate has expired']"
    assert done.stderr == "something else\n"


@pytest.mark.medium
def test_a_client_prints_no_lines_of_the_core():
    code = (
        "import http.server, os, threading\n"
        "from fedpeft.join import silence_grpc\n"
        "with silence_grpc():\n"
        "    import grpc\n"
        "assert 'GRPC_VERBOSITY' not in os.environ\n"
        "server = http.server.HTTPServer(('127.0.0.1', 0), http.server.BaseHTTPRequestHandler)\n"
        "server.RequestHandlerClass.log_message = lambda *_: None\n"
        "threading.Thread(target=server.serve_forever, daemon=True).start()\n"
        "address = f'127.0.0.1:{server.server_port}'\n"
        "with grpc.secure_channel(address, grpc.ssl_channel_credentials()) as channel:\n"
        "    try:\n"
        "        channel.unary_unary('/a/b')(b'', timeout=10)\n"
        "    except grpc.RpcError as error:\n"
        "        print(error.code().name)\n"
    )
    variables = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}  # flwr sets it
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=variables)
    assert done.stderr == ""
    assert done.stdout.strip() == "UNAVAILABLE"
