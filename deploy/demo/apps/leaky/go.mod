module acme.example/leaky

go 1.26

// Left behind on purpose: this version has a critical finding.
require golang.org/x/crypto v0.30.0

require golang.org/x/sys v0.28.0 // indirect
