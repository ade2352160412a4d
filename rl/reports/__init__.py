"""What a run or an evaluation leaves for people: rows, pages, the paper's tables, other formats."""
