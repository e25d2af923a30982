"""Tests and what they share.

This is a regular package because some libraries, textstat among them, install a package called `tests`, too. A regular
package in the first folder of the path wins over theirs; a namespace package loses.
"""
