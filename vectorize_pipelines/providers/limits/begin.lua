-- Counts a call from now on, since it begins later than when its key was lent. Times are microseconds of the server's
-- clock. ARGV: salt, prefix, id of the key, lease, tokens. KEYS: as in acquire.lua.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end -- the state was begun again: it knows of no call
local time = redis.call('TIME')
redis.call('ZADD', ARGV[2] .. 'uses:' .. ARGV[3], 'XX', time[1] * 1000000 + time[2], ARGV[4] .. ':' .. ARGV[5])
return 1
