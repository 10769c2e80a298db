package builder

import "github.com/moby/buildkit/frontend/dockerfile/linter"

// LintRule is a check of Dockerfiles.
type LintRule struct {
	Name string
	// Remedy says in a sentence what to write instead.
	Remedy string
	URL    string
}

// LintRules are all checks that a finding can come from: BuildKit's by its
// names, and Dray's by the numbers that hadolint gave them.
func LintRules() []LintRule {
	const wiki = "https://github.com/hadolint/hadolint/wiki/"
	return []LintRule{
		{linter.RuleConsistentInstructionCasing.Name, "Write all instructions in capitals, or all in small letters.", linter.RuleConsistentInstructionCasing.URL},
		{linter.RuleCopyIgnoredFile.Name, "Take the path out of the ignore file, or do not copy it.", linter.RuleCopyIgnoredFile.URL},
		{linter.RuleDuplicateStageName.Name, "Give each stage a name of its own: a later one hides the earlier.", linter.RuleDuplicateStageName.URL},
		{linter.RuleExposeInvalidFormat.Name, "Write only the container's port and protocol, as in EXPOSE 8080/tcp; addresses and host ports are given when a container is started.", linter.RuleExposeInvalidFormat.URL},
		{linter.RuleExposeProtoCasing.Name, "Write the protocol in small letters, as in EXPOSE 8080/tcp.", linter.RuleExposeProtoCasing.URL},
		{linter.RuleFromAsCasing.Name, "Write FROM and AS both in capitals, or both in small letters.", linter.RuleFromAsCasing.URL},
		{linter.RuleFromPlatformFlagConstDisallowed.Name, "Leave --platform out or use $BUILDPLATFORM, so that the image can be built for every platform.", linter.RuleFromPlatformFlagConstDisallowed.URL},
		{linter.RuleInvalidBaseImagePlatform.Name, "Use a base image that exists for the platform that is built.", "https://docs.docker.com/reference/dockerfile/#from"},
		{linter.RuleInvalidDefaultArgInFrom.Name, "Give the ARG a default with which FROM names an image, as in ARG TAG=3.20.", linter.RuleInvalidDefaultArgInFrom.URL},
		{linter.RuleInvalidDefinitionDescription.Name, "Start the comment with the name of the stage or argument, or put an empty line between the two.", linter.RuleInvalidDefinitionDescription.URL},
		{linter.RuleJSONArgsRecommended.Name, `Write the command as a list, as in CMD ["app", "--flag"], so that the program gets signals itself.`, linter.RuleJSONArgsRecommended.URL},
		{linter.RuleLegacyKeyValueFormat.Name, "Put an equals sign between name and value, as in ENV NAME=value.", linter.RuleLegacyKeyValueFormat.URL},
		{linter.RuleMaintainerDeprecated.Name, `Use a label instead: LABEL org.opencontainers.image.authors="name".`, linter.RuleMaintainerDeprecated.URL},
		{linter.RuleMultipleInstructionsDisallowed.Name, "Keep the last of them and remove the others, which have no effect.", linter.RuleMultipleInstructionsDisallowed.URL},
		{linter.RuleNoEmptyContinuation.Name, "Remove the empty line within the instruction, or put a comment there.", linter.RuleNoEmptyContinuation.URL},
		{linter.RuleRedundantTargetPlatform.Name, "Leave --platform=$TARGETPLATFORM out: it is the default.", linter.RuleRedundantTargetPlatform.URL},
		{linter.RuleReservedStageName.Name, "Give the stage another name: scratch and context have a meaning of their own.", linter.RuleReservedStageName.URL},
		{linter.RuleSecretsUsedInArgOrEnv.Name, "Mount the secret where it is needed (RUN --mount=type=secret,id=…), or give it to the container when it runs; what ARG and ENV hold stays in the image.", linter.RuleSecretsUsedInArgOrEnv.URL},
		{linter.RuleStageNameCasing.Name, "Write the stage's name in small letters.", linter.RuleStageNameCasing.URL},
		{linter.RuleUndefinedArgInFrom.Name, "Declare the argument with ARG before the first FROM, or mend its spelling.", linter.RuleUndefinedArgInFrom.URL},
		{linter.RuleUndefinedVar.Name, "Define the variable with ARG or ENV in this stage before it is used, or mend its spelling.", linter.RuleUndefinedVar.URL},
		{linter.RuleWorkdirRelativePath.Name, "Begin with an absolute WORKDIR, which does not depend on the base image.", linter.RuleWorkdirRelativePath.URL},

		{ruleRootUser, "End the stage with a USER that is not root, by its number if Kubernetes is to check it, as in USER 65532.", wiki + ruleRootUser},
		{ruleUntagged, "Name the version, best with its digest, as in FROM debian:12@sha256:….", wiki + ruleUntagged},
		{ruleLatest, "Name a version instead of latest, best with its digest.", wiki + ruleLatest},
		{ruleUnpinnedApt, "Name the version of each package, as in curl=7.88.*.", wiki + ruleUnpinnedApt},
		{ruleAptLists, "End the same RUN with rm -rf /var/lib/apt/lists/*, or mount a cache there.", wiki + ruleAptLists},
		{ruleAptRecommends, "Add --no-install-recommends and name what is really needed.", wiki + ruleAptRecommends},
		{ruleAddForCopy, "Use COPY: ADD is for archives that are to be unpacked and for addresses.", wiki + ruleAddForCopy},
		{ruleNoHealthcheck, "Add a HEALTHCHECK, or HEALTHCHECK NONE with a comment when the platform checks by itself.", wiki + ruleNoHealthcheck},
		{rulePipefail, `Write SHELL ["/bin/bash", "-o", "pipefail", "-c"] before it, or set -o pipefail in the command: else only the last program's failure counts.`, wiki + rulePipefail},
	}
}

func ruleOf(name string) (LintRule, bool) {
	for _, r := range LintRules() {
		if r.Name == name {
			return r, true
		}
	}
	return LintRule{}, false
}
