// Package signer signs images and attests to them with a cosign key, in the
// layouts that verifiers in the field read, and reads back what it wrote.
package signer
