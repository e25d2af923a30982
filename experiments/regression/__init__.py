"""A check whether a commit is slower than another one."""
