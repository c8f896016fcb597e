package main

import (
	"os"
	"strings"
	"testing"
)

// TestReferenceIsTheDocument: docs/configuration.md says what the code does.
func TestReferenceIsTheDocument(t *testing.T) {
	var b strings.Builder
	if err := writeReference(&b); err != nil {
		t.Fatal(err)
	}
	have, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != b.String() {
		t.Error("docs/configuration.md is not what the code says; run: go run ./cmd/ripstop config reference > docs/configuration.md")
	}
	for _, s := range nodeSettingsList {
		if s.help == "" || s.example == "" {
			t.Errorf("setting %s has no help or no example", s.key)
		}
	}
}
