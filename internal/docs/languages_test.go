package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestDocs_pagesExistInBothLanguages with the same headings, by their levels, and the same blocks of code.
func TestDocs_pagesExistInBothLanguages(t *testing.T) {
	pairs := map[string]string{"README.md": "README.zh-CN.md"}
	for _, name := range documents(t) {
		base := filepath.Base(name)
		switch filepath.ToSlash(filepath.Dir(name)) {
		case "docs", "docs/zh-CN":
			pairs[filepath.Join("docs", base)] = filepath.Join("docs", "zh-CN", base)
		}
	}
	for english, chinese := range pairs {
		t.Run(filepath.ToSlash(english), func(t *testing.T) {
			one, other := outlineOf(t, english), outlineOf(t, chinese)
			require.Equal(t, one.headings, other.headings, "levels of headings")
			require.Equal(t, one.blocks, other.blocks)
		})
	}
}

// outline has the parts that two translations must have in common.
type outline struct {
	headings []int
	blocks   []string
}

var block = regexp.MustCompile("(?ms)^```.*?^```$(\n\n<!-- prints: .*? -->)?")

func outlineOf(t *testing.T, name string) (o outline) {
	text, err := os.ReadFile(filepath.Join(root, name))
	require.NoError(t, err, "a page is there in English, below docs, and in Chinese, below docs/zh-CN")
	o.blocks = block.FindAllString(string(text), -1)
	for line := range strings.Lines(block.ReplaceAllString(string(text), "")) {
		if level := len(line) - len(strings.TrimLeft(line, "#")); level > 0 {
			o.headings = append(o.headings, level)
		}
	}
	return o
}

// TestChinese_isSetAsChinese refuses half-width punctuation beside Han characters, Han characters that touch Latin
// ones, and line breaks inside a paragraph, which a browser shows as a space.
func TestChinese_isSetAsChinese(t *testing.T) {
	for _, name := range documents(t) {
		if !strings.Contains(filepath.ToSlash(name), "zh-CN") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		for _, mistake := range mistakes(string(text)) {
			t.Errorf("%s: %s", name, mistake)
		}
	}
}

var (
	inlineCode = regexp.MustCompile("`[^`\n]*`")
	target     = regexp.MustCompile(`\]\([^)]*\)`)
	marks      = regexp.MustCompile(`[\[\]*]`)

	halfWidth = regexp.MustCompile(`\p{Han}[,;:!?()]|[,;:!?()]\p{Han}|\p{Han}\.(\s|$)`)
	touching  = regexp.MustCompile(`\p{Han}[A-Za-z0-9]|[A-Za-z0-9]\p{Han}`)
	unclosed  = regexp.MustCompile(`[，。：；！？）]\*\*[\p{Han}\w]`) // the bold type does not end there in Markdown
	newBlock  = regexp.MustCompile(`^\s*([-*] |[0-9]+\. |\||#|<!--|>|$)`)
	oneLine   = regexp.MustCompile(`^(\||#|<!--|$)`) // nothing continues these
)

// mistakes returns the typographic errors of a page.
func mistakes(page string) (found []string) {
	page = block.ReplaceAllString(page, "")
	before := ""
	for line := range strings.SplitSeq(page, "\n") {
		if !newBlock.MatchString(line) && !oneLine.MatchString(before) {
			found = append(found, "a line break inside a paragraph, before "+line)
		}
		before = line
		if unclosed.MatchString(line) {
			found = append(found, "punctuation inside of bold type, in "+line)
		}
		plain := marks.ReplaceAllString(target.ReplaceAllString(inlineCode.ReplaceAllString(line, "X"), "]"), "")
		for _, match := range halfWidth.FindAllString(plain, -1) {
			found = append(found, "half-width punctuation: "+match+" in "+line)
		}
		for _, match := range touching.FindAllString(plain, -1) {
			found = append(found, "no space between "+match+" in "+line)
		}
	}
	return found
}

func TestMistakes(t *testing.T) {
	for page, want := range map[string]int{
		"# 标题\n\n消息（至少一次）：见 [这里](a.md)。\n\n- 第一\n- 第二\n\n| 甲 | `x` |\n|---|---|\n| 乙：丙 | 3 次 |\n": 0,
		"```go\n// 注释,注释\n```\n": 0,
		"消息,队列":                  1,
		"消息 (队列)":                2,
		"消息: 队列":                 1,
		"共 3 条消息,`x`":            1,
		"**结束。**然后":              1,
		"结束. 然后":                 1,
		"消息\n队列":                 1,
		"- 消息\n  队列":             1,
		"使用`leat`命令":             1,
		"用**Redis**去重":           2,
	} {
		require.Len(t, mistakes(page), want, page)
	}
}
