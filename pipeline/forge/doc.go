// Package forge turns the webhooks of source forges into pipeline events: it
// checks who signed the bytes, and then what the bytes say.
package forge
