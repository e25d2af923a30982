"""Validation: the settings of the evaluation between rounds, which every run has."""

from __future__ import annotations

from fedpeft.wiring.validation import Validation

part = Validation
