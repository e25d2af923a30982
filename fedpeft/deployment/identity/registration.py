"""The privacy terms that a client declares when it registers, as they travel."""

from __future__ import annotations

from fedpeft.deployment.wire import v2_pb2 as v2
from fedpeft.errors import RunError
from fedpeft.privacy.declared_terms import DeclaredTerms


def encode_terms(terms: DeclaredTerms) -> v2.PrivacyTerms:
    """Return the terms as a message."""
    return v2.PrivacyTerms(
        noise=terms.noise,
        rate=terms.rate,
        releases=terms.releases,
        dp_delta=terms.delta,
        epsilon=terms.budget or 0.0,
        start=terms.start,
    )


def decode_terms(registration: v2.Registration) -> DeclaredTerms:
    """Return the terms in a registration.

    Raises:
        RunError: it has none, or impossible ones.
    """
    if not registration.HasField("terms"):
        raise RunError(
            "FP5081 the clients of this federation protect their own updates, but this client does not declare how"
        )
    told = registration.terms
    start = told.start if told.HasField("start") else None
    return DeclaredTerms(told.noise, told.rate, told.releases, told.dp_delta, told.epsilon or None, start)
