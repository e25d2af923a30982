"""Imported once by the process that workers are forked from, so that they share it."""

import gc

import peft  # noqa: F401
import transformers  # noqa: F401
from transformers.models.bert import modeling_bert  # noqa: F401

from fedpeft.memory import release

release()
gc.freeze()  # a collection writes into every object it visits, and a page that is written to is not shared any more
