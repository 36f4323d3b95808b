"""Tables of edits: their formats, columns and cells, and the jobs that their rows ask for."""
