"""What a run shows and keeps: its folder, records, console, summary, plots and exports."""
