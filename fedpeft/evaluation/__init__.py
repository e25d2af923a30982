"""What finished language models and classifiers say of rows, beside what the right answers are."""
