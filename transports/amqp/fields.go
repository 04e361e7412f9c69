package amqp

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"strconv"
	"time"

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

// fieldInt reads a counter that foreign software may have written in any integer type.
func fieldInt(field any) int {
	switch v := field.(type) {
	case int:
		return v
	case int8:
		return int(v)
	case int16:
		return int(v)
	case int32:
		return int(v)
	case int64:
		return int(v)
	case byte:
		return int(v)
	case uint16:
		return int(v)
	case uint32:
		return int(v)
	default:
		return 0
	}
}
