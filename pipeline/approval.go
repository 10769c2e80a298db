package pipeline

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Roles that the API knows. Others are free to be named in approval rules.
const (
	RoleViewer         = "viewer"
	RoleDeveloper      = "developer"
	RoleReleaseManager = "release-manager"
	RoleAuditor        = "auditor"
	RoleAdmin          = "admin"
)

// Grant is a role, everywhere or within one project.
type Grant struct {
	Role    string `json:"role"`
	Project string `json:"project,omitempty"` // empty: every project
}

func (g Grant) String() string {
	if g.Project == "" {
		return g.Role
	}
	return g.Role + "@" + g.Project
}

// ParseGrant reads "release-manager" or "release-manager@project".
func ParseGrant(s string) (Grant, error) {
	role, project, at := strings.Cut(s, "@")
	if !validName(role) || (at && project == "") {
		return Grant{}, fmt.Errorf("role %.60q: want a role, or role@project: %w", s, ErrInvalid)
	}
	return Grant{role, project}, nil
}

// RolesIn lists the roles that the grants give within a project.
func RolesIn(grants []Grant, project string) []string {
	var roles []string
	for _, g := range grants {
		if (g.Project == "" || g.Project == project) && !slices.Contains(roles, g.Role) {
			roles = append(roles, g.Role)
		}
	}
	return roles
}

// Approval is what somebody said of a promotion. It counts for the plan that
// was shown, and for no other.
type Approval struct {
	Promotion PromotionID `json:"promotion"`
	By        string      `json:"by"`
	// Roles that the approver had within the project at that time.
	Roles []string `json:"roles"`
	// Plan is the digest of the difference that was shown.
	Plan    Digest `json:"plan"`
	Comment string `json:"comment,omitempty"`
	// Rejected: the approver said no, which ends the promotion.
	Rejected bool      `json:"rejected,omitempty"`
	At       time.Time `json:"at"`
}
