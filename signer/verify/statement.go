package verify

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/dray-project/dray/pipeline"
)

const (
	// PredicateSignature is the predicate type of the statement by which cosign
	// signs an image in the bundle layout.
	PredicateSignature = "https://sigstore.dev/cosign/sign/v1"

	// StatementType is the _type of an in-toto statement, version 1.
	StatementType = "https://in-toto.io/Statement/v1"
	// cosign v2 still writes the older version, which has the same shape.
	statementTypeV01 = "https://in-toto.io/Statement/v0.1"

	// PayloadType is the DSSE payload type of an in-toto statement.
	PayloadType = "application/vnd.in-toto+json"

	maxSubjects = 1024
)

// checkStatement reads an in-toto statement and checks that it speaks of the
// image with that digest. It does not interpret the predicate.
func checkStatement(payload []byte, image pipeline.Digest) (predicateType string, err error) {
	fields, err := object(payload)
	if err != nil {
		return "", fmt.Errorf("the statement: %w", err)
	}
	var kind string
	if err := text(fields["_type"], &kind); err != nil || kind != StatementType && kind != statementTypeV01 {
		return "", fmt.Errorf("the statement's _type is %.100q, want an in-toto statement", kind)
	}
	if err := text(fields["predicateType"], &predicateType); err != nil || predicateType == "" {
		return "", errors.New("the statement has no predicateType")
	}
	var subjects []json.RawMessage
	if err := json.Unmarshal(orNull(fields["subject"]), &subjects); err != nil || len(subjects) == 0 {
		return "", errors.New("the statement has no subject")
	}
	if len(subjects) > maxSubjects {
		return "", fmt.Errorf("the statement has more than %d subjects", maxSubjects)
	}
	for _, s := range subjects {
		subject, err := object(s)
		if err != nil {
			return "", fmt.Errorf("the statement's subject: %w", err)
		}
		digests, err := object(orNull(subject["digest"]))
		if err != nil {
			return "", fmt.Errorf("the statement's subject digest: %w", err)
		}
		var hex string
		if text(digests["sha256"], &hex) == nil && "sha256:"+hex == string(image) {
			return predicateType, nil
		}
	}
	return "", fmt.Errorf("the statement is about another image than %s", image)
}

// object splits a JSON object into its fields. Unlike json.Unmarshal it takes
// names literally and refuses a name that appears twice: nobody else may read
// something else in what was signed.
func object(raw []byte) (map[string]json.RawMessage, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	fields := map[string]json.RawMessage{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, fmt.Errorf("not JSON: %w", err)
		}
		name, ok := t.(string)
		if !ok {
			return nil, errors.New("not JSON: a field without a name")
		}
		if _, twice := fields[name]; twice {
			return nil, fmt.Errorf("the field %.100q appears twice", name)
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, fmt.Errorf("not JSON: field %.100q: %w", name, err)
		}
		fields[name] = value
	}
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	return fields, nil
}

func text(raw json.RawMessage, into *string) error {
	if len(raw) == 0 || raw[0] != '"' {
		return errors.New("not a string")
	}
	return json.Unmarshal(raw, into)
}

func orNull(raw json.RawMessage) json.RawMessage {
	if raw == nil {
		return json.RawMessage("null")
	}
	return raw
}
