package amqp

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	amqp "github.com/rabbitmq/amqp091-go"
)

// fieldText is an AMQP field as a header: numbers in decimal, booleans as true and false, timestamps
// in RFC 3339, byte arrays in base64, void as "", tables and arrays as JSON with sorted keys.
func fieldText(field any) string {
	switch v := field.(type) {
	case string:
		return v
	case nil:
		return ""
	case bool:
		return strconv.FormatBool(v)
	case []byte:
		return base64.StdEncoding.EncodeToString(v)
	case time.Time:
		return v.UTC().Format(time.RFC3339)
	case float32:
		return strconv.FormatFloat(float64(v), 'g', -1, 32)
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64)
	case amqp.Decimal:
		return decimalText(v)
	case amqp.Table, []any:
		text, err := json.Marshal(jsonValue(v))
		if err != nil { // a number that JSON lacks, such as NaN
			return fmt.Sprint(v)
		}
		return string(text)
	default: // the integers
		return fmt.Sprint(v)
	}
}

// decimalText writes value·10^-scale, as the AMQP decimal is meant.
func decimalText(d amqp.Decimal) string {
	scale := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(d.Scale)), nil)
	return new(big.Rat).SetFrac(big.NewInt(int64(d.Value)), scale).FloatString(int(d.Scale))
}

// jsonValue turns what JSON has no type for into text, all the way down.
func jsonValue(field any) any {
	switch v := field.(type) {
	case amqp.Table:
		m := make(map[string]any, len(v))
		for key, value := range v {
			m[key] = jsonValue(value)
		}
		return m
	case []any:
		list := make([]any, len(v))
		for i, value := range v {
			list[i] = jsonValue(value)
		}
		return list
	case []byte, time.Time, amqp.Decimal:
		return fieldText(v)
	default:
		return v
	}
}

// maxCount is the highest that leat counts to.
const maxCount = 1 << 30

// fieldInt reads a counter that anybody may have written, in any integer type: it is between 0 and maxCount.
func fieldInt(field any) int {
	var n int64
	switch v := field.(type) {
	case int:
		n = int64(v)
	case int8:
		n = int64(v)
	case int16:
		n = int64(v)
	case int32:
		n = int64(v)
	case int64:
		n = v
	case byte:
		n = int64(v)
	case uint16:
		n = int64(v)
	case uint32:
		n = int64(v)
	}
	return int(min(max(n, 0), maxCount))
}

// fieldName is a name that anybody may have written, as valid UTF-8.
func fieldName(name string) string { return strings.ToValidUTF8(name, "\uFFFD") }

// shortName is a fieldName that fits on the wire.
func shortName(name string) string {
	if len(name) > maxNameBytes {
		name = name[:maxNameBytes] // what is cut in two is replaced, and may grow
	}
	name = fieldName(name)
	for len(name) > maxNameBytes {
		_, size := utf8.DecodeLastRuneInString(name)
		name = name[:len(name)-size]
	}
	return name
}
