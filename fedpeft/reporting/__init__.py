"""The output of a run: its folder, records, console, summary, plots and exports."""
