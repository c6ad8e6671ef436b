"""Images, data sets, crops of them, and degradations made here."""
