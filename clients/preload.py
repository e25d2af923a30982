"""Imports for the process that workers are forked from, so that they share its memory."""

import gc
import signal
import warnings

signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle, in the workers as well
gc.disable()  # what is imported stays, and to look for garbage among it takes a fifth of the time
warnings.filterwarnings("ignore", category=FutureWarning)  # from one library about another; users can't act on it

import peft  # noqa: E402, F401
import transformers  # noqa: E402, F401
from fedpeft.clients import pool  # noqa: E402, F401
from transformers.models.bert import modeling_bert  # noqa: E402, F401

from fedpeft.machine.memory import release  # noqa: E402

release()
gc.freeze()  # a collection writes to objects, and written pages are no longer shared
gc.enable()
