"""Whether operators give the same bits in every run, and a row the same bits wherever it stands."""
