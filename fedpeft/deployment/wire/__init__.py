"""The messages between a server and its clients: `v2.proto`, the code generated from it, and how messages are split.

After a change of the .proto: `python -m fedpeft.deployment.wire.generate`.
"""
