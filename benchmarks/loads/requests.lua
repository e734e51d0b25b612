-- The requests that wrk sends: `-- differing` sends other headers with every request, `-- entries N` requests N targets
-- in turn; `close` behind them ends each connection. Requests are joined from prepared pieces, so that the load is faster
-- than the servers.

local fixed, tail
local hexadecimal = {}
local count, high = 0, ""
-- Counting from the clock gives each run heads that no earlier run has sent, up to four million requests a second.
local first_high = os.time() * 1000

local function differing()
    local low = count % 4096
    if low == 0 then
        high = string.format("%08x", (first_high + math.floor(count / 4096)) % 4294967296)
    end
    count = count + 1
    local digits = hexadecimal[low + 1]
    return fixed .. high .. "-4b1d-4a7e-9c55-5f2d07c1a" .. digits .. "\r\ntraceparent: 00-" .. high
        .. "4b1d4a7e9c555f2d07c1a" .. digits .. "-8c1f2e" .. digits .. high:sub(2) .. tail
end

local targets = {}

local function entries()
    count = count % #targets + 1
    return targets[count]
end

function init(args)
    local first = "GET " .. wrk.path
    local host = " HTTP/1.1\r\nHost: " .. wrk.host .. ":" .. wrk.port .. "\r\nMetadata: true\r\n"
    if args[#args] == "close" then
        host = host .. "Connection: close\r\n"
    end
    if args[1] == "differing" then
        for number = 0, 4095 do
            hexadecimal[number + 1] = string.format("%03x", number)
        end
        fixed, tail = first .. host .. "x-ms-client-request-id: ", "-01\r\n\r\n"
        request = differing
    else
        for number = 0, tonumber(args[2]) - 1 do
            targets[number + 1] = first .. "&n=" .. number .. host .. "\r\n"
        end
        request = entries
    end
end
