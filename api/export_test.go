package api

// ProblemNames are the names of every problem.
func ProblemNames() (names []string) {
	for name := range problemTitles {
		names = append(names, name)
	}
	return names
}
