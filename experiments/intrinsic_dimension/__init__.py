"""The intrinsic dimension of a task, and how error depends on trained numbers and examples."""
