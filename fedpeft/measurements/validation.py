"""Validation: the settings of the evaluation between rounds, which every run has."""

from __future__ import annotations

from fedpeft.run.validation import Validation

part = Validation
