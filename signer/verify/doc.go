// Package verify checks what a registry holds of signatures and attestations
// for an image against trusted public keys. It needs no private key and little
// else, so that a command line can import it.
package verify
