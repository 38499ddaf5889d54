"""Native rows to filtered, split mixtures, with cards (chapter 01). Not here: tokenising rows for a trainer."""
