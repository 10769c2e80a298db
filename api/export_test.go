package api

// ProblemNames are the names of every problem.
func ProblemNames() (names []string) {
	for name := range problemTitles {
		names = append(names, name)
	}
	return names
}

// Harmless is a cell of an export as a spreadsheet may have it.
func Harmless(cell string) string { return harmless(cell) }
