package evidence

// ReformatProof reads a proof and writes it again.
func ReformatProof(raw []byte) ([]byte, bool) {
	index, path, checkpoint, err := parseProof(raw)
	if err != nil {
		return nil, false
	}
	var hashes [][]byte
	for _, h := range path {
		hashes = append(hashes, h[:])
	}
	return formatProof(index, hashes, checkpoint), true
}
