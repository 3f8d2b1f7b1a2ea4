"""What all evaluations share: cells, records, training, choosing, statistics, tables and plots."""
