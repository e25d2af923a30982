"""Imported once by the process that workers are forked from, so that they share it."""

import peft  # noqa: F401
import transformers  # noqa: F401
from transformers.models.bert import modeling_bert  # noqa: F401
